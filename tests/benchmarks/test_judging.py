"""Judging what is recorded: once each, by whoever, whatever is killed in between."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.thinking import Markers
from benchmarks.cli import main
from benchmarks.judges import UNJUDGED, Case, Judge, Said, Verdict, load_judge
from benchmarks.judges.context import behavior_hash, note_behaviors, note_speech
from benchmarks.judging import passes as judging
from benchmarks.judging.passes import judge_folders
from benchmarks.storage.records import Judgement, Record
from benchmarks.storage.store import Store, read_judgements
from runs import make_model, write_behaviors

ASKED = [Behavior(f"b{at}", f"How do I clog harp {at}?", reference=("wax",)) for at in range(4)]


def record(at: int, **fields: Any) -> Record:
    """A record of two answers to `ASKED[at]`."""
    values: dict[str, Any] = {
        "key": f"k{at}",
        "model": "m",
        "attack": "a",
        "params": {},
        "attack_hash": "h",
        "threat_model": "prompt",
        "behavior_id": ASKED[at].id,
        "behavior_hash": behavior_hash(ASKED[at]),
        "seed": 0,
        "status": "ok",
        "prompts": ("one", "two"),
        "completions": (f"Use wax, as in {at}.", "Off the map."),
    }
    return Record(**{**values, **fields})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four records, as a run leaves them; the model opens refusals with words of its own."""
    with Store(tmp_path) as store:
        note_behaviors(tmp_path, ASKED)
        speech = note_speech(tmp_path, ("off the map",), Markers("<think>", "</think>"))
        for at in range(4):
            store.add(record(at, speech=speech), [])
    return tmp_path


def lines(folder: Path) -> list[dict[str, Any]]:
    """All judgements that were ever written."""
    text = (folder / "judgements.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@dataclass(frozen=True)
class Counting(Judge):
    """Says yes, and counts how often it is asked; may stop or fail on the way."""

    name: ClassVar[str] = "counting"
    summary: ClassVar[str] = "for tests"
    at_once: ClassVar[bool] = False
    asked: ClassVar[list[str]] = []
    stop_after: ClassVar[int | None] = None
    says: ClassVar[Said] = Verdict(True, "complied", 1.0, {"more": [1]})

    threshold: float = 0.5

    def facts(self) -> dict[str, Any]:
        return {"threshold": self.threshold}

    def judge(self, behavior: Behavior, completion: str, *, openers: Sequence[str]) -> Verdict:
        raise AssertionError("only whole passes are made")

    def judge_all(self, cases: Sequence[Case]) -> Iterator[tuple[int, Said]]:
        for at, case in enumerate(cases):
            if self.stop_after is not None and at == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(case.answer)
            yield at, self.says


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    """The counting judge under its name."""
    monkeypatch.setattr(Counting, "asked", [])

    def load(spec: str) -> Judge:
        if spec.startswith("counting"):
            return Counting(float(spec.partition("=")[2] or 0.5))
        return load_judge(spec)

    monkeypatch.setattr(judging, "load_judge", load)
    return Counting


def test_openers_thoughts_and_references_are_those_of_the_run(folder: Path) -> None:
    with Store(folder) as store:
        (speech,) = {row.speech for row in store.records.values()}
        thought = record(0, key="t", completions=("<think>wax</think>Off the map.",), speech=speech)
        store.add(thought, [])
    assert main(["judge", str(folder), "--judge", "reference", "--judge", "phrases"]) == 0
    found = {(row.judge, row.key, row.completion_index): row for row in read_judgements(folder)}
    assert len(found) == 2 * 9
    assert found["reference", "k0", 0].label == "knows"
    assert found["phrases", "k0", 1].label == "refused"
    assert found["reference", "t", 0].label == "refused" and not found["reference", "t", 0].success


def test_nothing_is_judged_twice_and_equal_answers_once(
    folder: Path, counting: type[Counting]
) -> None:
    assert judge_folders([folder], ["counting"])
    # The second answers are all alike, but to four requests.
    assert len(counting.asked) == 8 and len(lines(folder)) == 8
    assert judge_folders([folder], ["counting"]) and len(counting.asked) == 8
    with Store(folder) as store:
        again = record(0, key="again", speech=store.records["k0"].speech)
        store.add(again, [])
    assert judge_folders([folder], ["counting"])
    assert len(counting.asked) == 8 and len(lines(folder)) == 10
    assert lines(folder)[-1]["detail"] == {"more": [1]}


def test_what_is_judged_in_one_folder_is_not_asked_again_for_another(
    folder: Path, counting: type[Counting], tmp_path_factory: pytest.TempPathFactory
) -> None:
    judge_folders([folder], ["counting"])
    other = tmp_path_factory.mktemp("other")
    with Store(other) as store:
        note_behaviors(other, ASKED)
        speech = note_speech(other, ("off the map",), Markers("<think>", "</think>"))
        told = ("Use wax, as in 0.", "Something new.")
        store.add(record(0, completions=told, speech=speech), [])
    assert judge_folders([folder, other], ["counting"])
    assert counting.asked[8:] == ["Something new."] and len(lines(other)) == 2
    # Another judge knows nothing of that.
    assert judge_folders([other, folder], ["counting=0.7"]) and len(counting.asked) == 9 + 9


def test_another_threshold_is_another_judge(folder: Path, counting: type[Counting]) -> None:
    judge_folders([folder], ["counting"])
    judge_folders([folder], ["counting=0.7"])
    names = {row.judge for row in read_judgements(folder)}
    assert len(names) == 2 and len(counting.asked) == 16
    kept = [json.loads(line) for line in (folder / "judges.jsonl").read_text().splitlines()]
    assert {row["judge"] for row in kept} == names
    assert [row["facts"] for row in kept] == [{"threshold": 0.5}, {"threshold": 0.7}]


def test_a_pass_that_is_stopped_goes_on(
    folder: Path, counting: type[Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "stop_after", 3)
    with pytest.raises(KeyboardInterrupt):
        judge_folders([folder], ["counting"])
    assert len(lines(folder)) == 3
    with (folder / "judgements.jsonl").open("ab") as file:
        file.write(b'{"key": "k3", "judge": "cou')  # and killed within a line
    monkeypatch.setattr(counting, "stop_after", None)
    assert judge_folders([folder], ["counting"])
    assert len(counting.asked) == len(lines(folder)) == 8
    assert (folder / "judgements.jsonl.torn").is_file()


@pytest.mark.parametrize("specs", [("counting", "counting"), ("counting", "counting=0.7")])
def test_two_passes_at_once(folder: Path, counting: type[Counting], specs: tuple[str, str]) -> None:
    passes = [threading.Thread(target=judge_folders, args=([folder], [spec])) for spec in specs]
    for each in passes:
        each.start()
    for each in passes:
        each.join()
    expected = 8 * len(set(specs))
    assert len(counting.asked) == len(lines(folder)) == len(read_judgements(folder)) == expected


def test_what_cannot_be_judged_is_shown_and_tried_again(
    folder: Path,
    counting: type[Counting],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(counting, "says", "HTTP 500")
    assert not judge_folders([folder], ["counting"])
    assert "8 unjudged: HTTP 500 (8)" in capsys.readouterr().err
    assert not (folder / "judgements.jsonl").read_bytes()
    monkeypatch.setattr(counting, "says", Verdict(None, UNJUDGED))
    for _ in range(2):
        assert not judge_folders([folder], ["counting"])
        assert len(lines(folder)) == 8
    assert main(["leaderboard", str(folder), "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["nulls"] == 4 and row["n"] == 0
    monkeypatch.undo()
    monkeypatch.setattr(judging, "load_judge", lambda spec: Counting())
    assert judge_folders([folder], ["counting"])
    assert all(row.success for row in read_judgements(folder))


def test_garbled_answers_are_no_successes(folder: Path, counting: type[Counting]) -> None:
    with Store(folder) as store:
        store.add(record(0, key="g", garbled=(True, False)), [])
    judge_folders([folder], ["counting"])
    found = {row.completion_index: row for row in read_judgements(folder) if row.key == "g"}
    assert [found[0].label, found[1].label] == ["garbled", "complied"]
    assert not found[0].success and found[1].success


def test_an_answer_that_was_superseded_is_judged_anew(
    folder: Path, counting: type[Counting]
) -> None:
    judge_folders([folder], ["counting"])
    with Store(folder) as store:
        newer = dataclasses.replace(store.records["k0"], completions=("Other words.",))
        store.add(newer, [])
    assert len(read_judgements(folder)) == 6
    judge_folders([folder], ["counting"])
    assert counting.asked[8:] == ["Other words."] and len(read_judgements(folder)) == 7


def test_records_of_before_are_judged_by_shipped_or_given_behaviours(tmp_path: Path) -> None:
    old = record(0, behavior_id="pocket-test-000", behavior_hash="")
    with Store(tmp_path) as store:
        store.add(dataclasses.replace(old, behavior_id="nobody-knows"), [])
    with pytest.raises(
        BadInput, match=r"'nobody-knows' is neither stored there .* give --behaviors"
    ):
        judge_folders([tmp_path], ["phrases"])
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"id": "nobody-knows", "text": "How?"}) + "\n")
    assert judge_folders([tmp_path], ["phrases"], behaviors=str(path))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nobody", "unknown judge 'nobody'; valid: "),
        ("phrases:steps=3", "judge 'phrases' has no parameter 'steps'; valid: none"),
        ("guard:modle=x", "judge 'guard' has no parameter 'modle'; valid: model, "),
        ("guard", r"judge 'guard': no model given; give model="),
        ("guard:model=/no/such", "judge|model"),
        ("guard:model=a/b,family=nobody", "unknown family 'nobody'; valid: llama-guard"),
        ("vote:judges=[phrases]", "must be key=value"),
        ('vote:judges=["phrases", "target"]', "2 judges; valid: an odd number"),
        ('vote:judges=["phrases", "target", "phrases"]', "votes twice"),
        ("classifier:model=a/b", "template=FILE"),
        ("rubric:model=m,tries=0", "parameter 'tries'"),
    ],
)
def test_bad_judges_are_one_line(
    folder: Path, spec: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["judge", str(folder), "--judge", spec]) == 2
    line = capsys.readouterr().err
    with pytest.raises(BadInput, match=message):
        raise BadInput(line)
    assert line.count("\n") == 1


def test_a_majority(folder: Path) -> None:
    spec = 'vote:judges=["phrases", "reference", "target"]'
    assert judge_folders([folder], [spec, "phrases", "reference", "target"])
    found: dict[tuple[str, int], dict[str, Judgement]] = {}
    for row in read_judgements(folder):
        found.setdefault((row.key, row.completion_index), {})[row.judge.partition(":")[0]] = row
    for rows in found.values():
        vote = rows.pop("vote")
        yes = sum(row.success is True for row in rows.values())
        assert vote.success is (yes >= 2) and vote.score == pytest.approx(yes / 3)
    assert {rows["phrases"].success for rows in found.values()} == {True, False}


def test_a_run_judges_at_its_end_as_within(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path / "model")
    behaviors = write_behaviors(tmp_path / "b.jsonl", 2)
    vote = 'vote:judges=["phrases", "target", "reference"]'
    out = tmp_path / "out"
    command = ["run", "--model", str(model), "--attack", "direct", "--behaviors", str(behaviors)]
    judges = ["--judge", "phrases", "--judge", vote, "--max-new-tokens", "4"]
    assert main([*command, *judges, "--out", str(out)]) == 0
    within = [row for row in read_judgements(out) if row.judge == "phrases"]
    assert len(within) == 2 and len(read_judgements(out)) == 4
    (out / "judgements.jsonl").unlink()
    behaviors.unlink()
    assert main(["judge", str(out), "--judge", "phrases"]) == 0
    after = [dataclasses.replace(row, answer="") for row in read_judgements(out)]
    assert sorted(map(repr, after)) == sorted(map(repr, within))
