"""What a run records, with a scripted attack and a model that echoes what it is sent."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import runs
from attacks import BadInput, registry
from attacks.core.model import Model
from attacks.core.prompt import Messages
from benchmarks.harness.runner import run
from benchmarks.storage.records import Record
from benchmarks.storage.store import read_judgements, read_records
from runs import contents, make_model, make_suite, write_behaviors


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def behaviors(tmp_path: Path) -> Path:
    """Behaviours whose fact is "magic"."""
    return write_behaviors(tmp_path / "test.jsonl", 2, reference=["magic"])


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted attacks, and answers that repeat the question."""
    for name, cls in {"scripted": "Scripted", "quick": "Quick", "fits": "Fits"}.items():
        monkeypatch.setitem(registry.ATTACKS.built_in, name, f"runs:{cls}")
    monkeypatch.setattr(Model, "generate", echo)


def echo(self: Model, conversations: Sequence[Messages], **_: Any) -> list[str]:
    """In the place of `Model.generate`."""
    if any("too long" in messages[-1].content for messages in conversations):
        raise BadInput("prompt of 999 tokens is longer than the context")
    return [messages[-1].content for messages in conversations]


@pytest.fixture
def records(model: Path, behaviors: Path, tmp_path: Path) -> Callable[..., list[Record]]:
    """The records of a run with these attacks and suite fields."""

    def make(*attacks: str, good: bool = True, **fields: Any) -> list[Record]:
        suite = make_suite(model, behaviors, *attacks, **fields)
        assert run(suite, tmp_path / "out") is good
        return read_records(tmp_path / "out")

    return make


def test_verified_at_powers_of_two_and_the_last_step(records: Callable[..., Any]) -> None:
    (record,) = records("scripted:steps=11,magic=3", limit=1)
    assert (record.status, record.steps, record.verifications) == ("ok", 11, 5)
    assert record.prompts == ("magic 11",) and record.completions == ("magic 11",)
    assert record.losses == tuple(1 / step for step in range(1, 12))
    # Seen at step 4, the first look after step 3; verification is no part of its FLOPs.
    assert (record.first_success.step, record.first_success.flops) == (4, 400)
    assert 0 < record.first_success.seconds <= record.seconds.search + record.seconds.verify
    assert record.flops == 1100 and record.seconds.generate == 0
    assert set(record.versions) == {"python", "torch", "transformers", "nnsight", "reroute-bench"}


@pytest.mark.parametrize("attack", ["scripted", "quick"])
def test_an_attack_with_a_target_of_its_own_is_judged_by_that(
    attack: str, records: Callable[..., Any], tmp_path: Path
) -> None:
    """Also when a judge comes later."""
    specs = (f"{attack}:magic=1", f'{attack}:magic=1,asked="magic"')
    for judges in [("reference",), ("reference", "target")]:
        plain, asked = sorted(records(*specs, limit=1, judges=judges), key=lambda r: r.target or "")
    assert (plain.target, asked.target) == (None, "magic")
    verdicts = {(v.key, v.judge): v.success for v in read_judgements(tmp_path / "out")}
    assert verdicts[plain.key, "reference"] and verdicts[asked.key, "reference"]
    assert verdicts[asked.key, "target"] and not verdicts[plain.key, "target"]


def test_success_on_the_last_step_is_seen(records: Callable[..., Any]) -> None:
    (record,) = records("scripted:steps=7,magic=7", limit=1)
    assert record.first_success.step == 7 and record.verifications == 4


def test_the_search_stops_at_the_first_verified_success(records: Callable[..., Any]) -> None:
    (record,) = records("scripted:steps=11,magic=3", limit=1, stop="first-success")
    assert (record.status, record.steps, record.stop) == ("ok", 4, "first-success")
    assert record.completions == ("magic 4",)


def test_several_candidates_are_answered_and_judged(
    records: Callable[..., Any], tmp_path: Path
) -> None:
    (record,) = records("scripted:magic=1", limit=1, attempts=2, judges=("reference", "phrases"))
    assert record.prompts == record.completions == ("magic 6", "second 6")
    assert record.seconds.generate > 0
    found = {
        (row.judge, row.completion_index): row.success for row in read_judgements(tmp_path / "out")
    }
    assert found == {
        ("reference", 0): True,
        ("reference", 1): False,
        ("phrases", 0): True,
        ("phrases", 1): True,
    }


@pytest.mark.parametrize(
    ("wrong", "status", "steps", "error"),
    [
        ("nan", "error", 3, "ArithmeticError: the loss is nan at step 3"),
        ("memory", "out_of_memory", 2, "OutOfMemoryError: CUDA out of memory. Tried to allocate"),
        ("key", "error", 2, r"KeyError: 'first line\nsecond \x1b[31mline'"),
    ],
)
def test_a_failing_cell_is_a_record_and_the_run_goes_on(
    records: Callable[..., Any], wrong: str, status: str, steps: int, error: str
) -> None:
    first, second = records(f'scripted:wrong="{wrong}",wrong_on="test-0"', good=False)
    assert (first.status, first.error, first.steps) == (status, error, steps)
    assert first.losses == (1.0, 0.5) and first.completions == ()
    assert second.status == "ok"


def test_failures_are_tried_again_and_superseded(
    records: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    attack = 'scripted:wrong="key",wrong_on="test-0"'
    path = tmp_path / "out" / "records.jsonl"
    records(attack, good=False)
    before = path.read_bytes()
    records(attack, good=False)
    assert path.read_bytes() == before
    monkeypatch.setattr(runs.Scripted, "broken", False)
    done = records(attack)
    assert [record.status for record in done] == ["ok", "ok"]
    assert len(path.read_text().splitlines()) == 3


def test_a_budget_stops_and_a_larger_one_supersedes(
    records: Callable[..., Any], tmp_path: Path
) -> None:
    attack = "scripted:steps=9,magic=9"
    (stopped,) = records(attack, limit=1, seconds=1e-9)
    assert (stopped.status, stopped.steps, stopped.budget_seconds) == ("budget", 1, 1e-9)
    assert stopped.verifications == 1 and len(stopped.completions) == 1
    path = tmp_path / "out" / "records.jsonl"
    before = path.read_bytes()
    records(attack, limit=1, seconds=1e-10)
    assert path.read_bytes() == before
    (finished,) = records(attack, limit=1)
    assert (finished.key, finished.status, finished.steps) == (stopped.key, "ok", 9)
    after = path.read_bytes()
    records(attack, limit=1, seconds=1e-9)
    assert path.read_bytes() == after
    (judgement,) = read_judgements(tmp_path / "out")
    assert judgement.success is True


def test_attacks_without_search_answer_in_batches(
    records: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def generate(self: Model, conversations: Sequence[Messages], **options: Any) -> list[str]:
        shapes.append((len(conversations), options.get("pad_to"), options.get("batch_size")))
        return echo(self, conversations)

    monkeypatch.setattr(Model, "generate", generate)
    done = records("quick:magic=1", "scripted:steps=1", harmless=True, attempts=2, limit=1)
    quick = [record for record in done if record.attack == "quick"]
    assert {record.harmful for record in quick} == {True, False} and len(done) == 3
    assert shapes[0] == (4, 32, 16)
    for record in quick:
        assert (record.steps, record.verifications, record.flops) == (1, 0, 100)
        assert record.completions == ("magic 1", "second 1")
        assert record.first_success.step == 1
        spent = record.seconds.search + record.seconds.generate
        assert record.first_success.seconds == pytest.approx(spent)
    assert quick[0].seconds.generate == quick[1].seconds.generate > 0


def test_one_prompt_too_long_costs_one_cell_of_a_batch(
    model: Path, behaviors: Path, tmp_path: Path
) -> None:
    text = behaviors.read_text().replace("break the harp no. 0", "too long")
    behaviors.write_text(text)
    assert not run(make_suite(model, behaviors, "direct"), tmp_path / "out")
    first, second = sorted(read_records(tmp_path / "out"), key=lambda record: record.behavior_id)
    assert (first.status, first.error[:10], second.status) == ("error", "prompt of ", "ok")


def test_a_later_judge_judges_only(records: Callable[..., Any], tmp_path: Path) -> None:
    records("scripted")
    path = tmp_path / "out" / "records.jsonl"
    before = path.read_bytes()
    records("scripted", judges=("phrases",))
    records("scripted", judges=("phrases",))
    assert path.read_bytes() == before
    judges = [row.judge for row in read_judgements(tmp_path / "out")]
    assert sorted(judges) == ["phrases", "phrases", "reference", "reference"]


def test_what_is_fitted_is_kept_and_reused(
    model: Path, behaviors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = write_behaviors(tmp_path / "train.jsonl", 2, prefix="train")
    suite = make_suite(model, behaviors, "fits:steps=1", train=str(train), limit=1)
    assert run(suite, tmp_path / "one")
    monkeypatch.setattr(runs.Fits, "fails", True)
    assert run(suite, tmp_path / "one")
    assert run(suite, tmp_path / "two", artefacts=tmp_path / "one" / "artefacts")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    (first,), (second,) = read_records(tmp_path / "one"), read_records(tmp_path / "two")
    assert 0 < first.seconds.prepare == second.seconds.prepare
    # The record says what it was made with.
    assert (tmp_path / "two" / "artefacts" / f"{first.artefact}.json").is_file()
    (path,) = (tmp_path / "two" / "artefacts").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInput, match="damaged artefact; delete it"):
        run(suite, tmp_path / "two")
    # Fails to fit: errors, which later success supersedes.
    assert not run(suite, tmp_path / "three")
    assert [record.status for record in read_records(tmp_path / "three")] == ["out_of_memory"]
    monkeypatch.setattr(runs.Fits, "fails", False)
    assert run(suite, tmp_path / "three")
    assert contents(tmp_path / "three") == contents(tmp_path / "one")


def test_a_dry_run_writes_nothing(
    model: Path, behaviors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = make_suite(model, behaviors, "direct", "scripted:steps=3")
    before = sorted(tmp_path.rglob("*"))
    assert run(suite, tmp_path / "out", dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "scripted: 2 cells, 0 done" in lines[1]
    assert "one timed step" in lines[1] and lines[3].startswith("total: 4 cells to run")
    run(make_suite(model, behaviors, "direct", "scripted:steps=3", limit=1), tmp_path / "out")
    capsys.readouterr()
    assert run(suite, tmp_path / "out", dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    assert "2 cells, 1 done" in lines[1] and f"records in {tmp_path / 'out'}" in lines[1]
    assert lines[3].startswith("total: 2 cells to run") and "defences" not in lines[3]
    defended = dataclasses.replace(suite, defense=("none", "system-prompt"))
    assert run(defended, tmp_path / "other", dry_run=True)
    assert capsys.readouterr().out.splitlines()[-1].endswith(", without what defences take")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"workers": 0}, "valid: 1 or more"), ({"artefacts": Path("no-such")}, "does not exist")],
)
def test_bad_options_are_refused(
    model: Path, behaviors: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        run(make_suite(model, behaviors, "direct"), tmp_path / "out", **options)
    with pytest.raises(BadInput, match="cannot write into"):
        run(make_suite(model, behaviors, "direct"), Path(os.devnull) / "out")
    assert not (tmp_path / "out").exists()
