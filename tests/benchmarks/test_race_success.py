"""The race to success: a scripted peer by the adapter, the referee, and the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.race.success import main
from conftest import ROOT

#: Proposes the plain request, which is refused, and then a prompt that another attack has found.
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
            referee.step(task["request"], 2.0 - step)
    except Stopped:
        pass
    referee.end()
"""


def test_a_peer_that_never_succeeds_loses_to_strong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "peer_scripted.py"
    script.write_text(PEER.format(race=str(ROOT / "benchmarks" / "race")))
    told = ["--peer", sys.executable, "--peer-script", str(script), "--model", "pocket-llama"]
    numbers = ["--rounds", "2", "--steps", "3", "--out", str(tmp_path / "out")]
    assert main([*told, *numbers]) == 0
    written = (tmp_path / "out" / "pocket-llama-scripted.md").read_text()
    assert written in capsys.readouterr().out
    assert "| Verified success | 2 of 2 | 0 of 2 | |" in written and "| never | ≥ " in written
    found = json.loads((tmp_path / "out" / "pocket-llama-scripted.json").read_text())
    assert "scripted" in json.dumps(found)


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (["--peer", "/nowhere/python"], "no Python of a peer"),
        (["--peer", sys.executable, "--peer-path", "/nowhere"], "no checkout of the authors' code"),
        (["--peer", sys.executable, "--rounds", "0"], "at least 1"),
    ],
)
def test_bad_input_is_one_line(
    told: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(told) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
