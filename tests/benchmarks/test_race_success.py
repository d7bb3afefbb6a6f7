"""The race to success: a scripted peer by the adapter, the referee, and the table."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from attacks.core.prompt import conversation
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.race.curves import Pair, table
from benchmarks.race.racer import Finish
from benchmarks.race.success import main, referee, verified
from benchmarks.storage.store import read_records
from conftest import ROOT, first_rows, pocket

#: Proposes the plain request, which is refused, and then, if it knows one, another message.
PEER = """
import sys
sys.path.insert(0, {race!r})
from adapter import Referee, Stopped

folder, device, dtype, threads = sys.argv[1:]
referee = Referee(versions={{"scripted": "1"}})
for task in referee.tasks():
    if task["do"] == "prepare":
        referee.prepared()
        continue
    print("noise on stdout")
    try:
        for step in range(task["steps"]):
            knows = {known!r}.get(task["request"], task["request"])
            referee.step(knows if step else task["request"], 2.0 - step)
    except Stopped:
        pass
    referee.end()
"""


@pytest.mark.slow
def test_a_peer_races_strong_and_wins_where_it_succeeds_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two behaviours it knows for one what `gcg` found in a committed run."""
    never, once = [row for row in load_behaviors("pocket-test") if row.harmful][:2]
    (message,) = (
        record.prompts[0]
        for record in read_records(ROOT / "results" / "pocket-board")
        if (record.attack, record.model, record.behavior_id) == ("gcg", "pocket-llama", once.id)
    )
    script, out = tmp_path / "peer_scripted.py", tmp_path / "out"
    race = str(ROOT / "benchmarks" / "race")
    script.write_text(PEER.format(race=race, known={once.text: message}))
    told = ["--peer", sys.executable, "--peer-script", str(script), "--model", "pocket-llama"]
    assert main([*told, "--rounds", "2", "--steps", "3", "--out", str(out)]) == 0
    written = (out / "pocket-llama-scripted.md").read_text()
    assert written in capsys.readouterr().out
    assert "- judge: reference\n" in written
    assert "| Verified success | 2 of 2 | 1 of 2 | |" in written
    races = json.loads((out / "pocket-llama-scripted.json").read_text())["races"]
    theirs = [race["theirs"] for race in races]
    assert [(end["succeeded"], end["steps"]) for end in theirs] == [(False, 3), (True, 2)]
    assert [end["content"] for end in theirs] == [never.text, message]
    assert all(fact in theirs[1]["answer"] for fact in once.reference or ())
    assert all(0 < end["seconds"] < math.inf for end in theirs)


def test_who_never_succeeds_counts_with_what_it_took() -> None:
    def end(seconds: float, good: bool) -> Finish:
        return Finish(seconds, None, 3, good, "", "")

    ours = [end(1.0, True), end(2.0, True), end(4.0, True)]
    pairs = [Pair(str(at), one, end(20.0, False)) for at, one in enumerate(ours)]
    written = table(pairs)
    assert "| Verified success | 3 of 3 | 0 of 3 | |" in written
    assert "| Median seconds to it | 2 | never | ≥ 10 [" in written


def test_another_judge_decides_where_it_is_named() -> None:
    """An answer to something else is no success by facts, and one by its opening."""
    model, train = pocket("pocket-llama"), first_rows(8)
    harmful, harmless = train[0], train[-1]
    by_facts, by_opening = (referee(model, name, train) for name in ("reference", "phrases"))
    for bench, succeeds in ((by_facts, False), (by_opening, True)):
        assert not verified(bench, harmful, harmful.text)[1]
        assert verified(bench, harmful, harmless.text)[1] == succeeds
        assert not bench.succeeds(harmful, conversation(harmful.text), " ".join(["harp"] * 30))


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (["--peer", "/nowhere/python"], "no Python of a peer"),
        (["--peer", sys.executable, "--peer-path", "/nowhere"], "no checkout of the authors' code"),
        (["--peer", sys.executable, "--rounds", "0"], "at least 1"),
        (["--peer", sys.executable, "--judge", "oracle"], "unknown judge 'oracle'"),
        (["--peer", sys.executable, "--judge", "rubric:model=m,local=true"], "judges after"),
    ],
)
def test_bad_input_is_one_line(
    told: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(told) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
