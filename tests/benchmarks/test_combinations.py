"""Combinations and openings through the harness: fitted, run, resumed, recorded, tabulated."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import attacks.refusal_direction
from attacks import parse_spec
from attacks.core.interventions import AblateDirection, Intervention, SuppressTokens
from attacks.core.model.hooks import intervening
from attacks.core.prompt import Message
from attacks.core.reading.states import LEAST_LOG_PROB, first_token_kl
from benchmarks.boards.leaderboard import read_rows, render
from benchmarks.harness.runner import run
from benchmarks.inputs.suites import Suite, attack_hash, suite_attacks
from benchmarks.storage.records import Record
from benchmarks.storage.store import read_records
from conftest import ROOT, pocket
from runs import contents, make_model, make_suite, write_behaviors

SEARCH = "gcg:steps=2,slots=3,width=8,topk=8"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """A search and single steps on a changed tiny model."""
    folder = tmp_path_factory.mktemp("suite")
    return make_suite(
        make_model(folder / "tiny"),
        write_behaviors(folder / "test.jsonl", 3),
        f"{SEARCH}+refusal-direction",
        "prefill:words=2+refusal-direction",
        "refusal-direction",
        train=str(write_behaviors(folder / "train.jsonl", 4, prefix="train")),
        limit=2,
        harmless=True,
    )


@pytest.fixture(scope="module")
def done(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its run."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    assert run(suite, folder)
    return folder


def test_records_say_what_was_combined(suite: Suite, done: Path) -> None:
    records = read_records(done)
    by_attack = {
        name: [record for record in records if record.attack == name]
        for name in ("gcg+refusal-direction", "prefill+refusal-direction", "refusal-direction")
    }
    # Searches are not run on harmless behaviours, single steps are.
    assert [len(group) for group in by_attack.values()] == [2, 4, 4]
    for name, group in by_attack.items():
        for record in group:
            assert (record.status, record.threat_model) == ("ok", "intervention")
            assert record.prompts and "harp" in record.prompts[0]
            opened = ("Sure, here",) if name.startswith("prefill") else ()
            assert record.openings == opened
            # Nothing is damaged where the plain model refuses, as this one does by chance.
            assert record.first_token_kl is None or not record.harmful
            assert record.seconds.prepare > 0
    searched = by_attack["gcg+refusal-direction"][0]
    assert set(searched.params) == {"gcg", "refusal-direction"}
    assert searched.params["gcg"]["steps"] == searched.steps == 2
    measured = [record.first_token_kl for record in records if record.first_token_kl is not None]
    assert measured and min(measured) > 0
    # What is measured of an attack is no part of its cost.
    assert all(record.flops == 0 for record in by_attack["refusal-direction"])
    assert searched.attack_hash == attack_hash(parse_spec(suite.attacks[0]))


def test_parts_share_what_is_fitted(
    suite: Suite, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three rest on one direction, and a run of it alone has it for the others."""
    assert len(list((done / "artefacts").glob("*.safetensors"))) == 1
    alone = dataclasses.replace(suite, attacks=suite.attacks[2:])
    assert run(alone, tmp_path / "alone")

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(attacks.refusal_direction, "find_checked_direction", fail)
    assert run(suite, tmp_path / "out", artefacts=tmp_path / "alone" / "artefacts")
    assert contents(tmp_path / "out") == contents(done)
    other = dataclasses.replace(suite, train=suite.behaviors.replace("test.", "other."))
    write_behaviors(Path(other.train or ""), 4, prefix="other")
    assert not run(other, tmp_path / "other")
    failed = read_records(tmp_path / "other")
    assert {record.error for record in failed} == {"AssertionError: fitted again"}
    assert len({record.key for record in failed}) == len(failed) == 10


@pytest.mark.slow
def test_going_on_equals_a_run_that_nothing_stopped(
    suite: Suite, done: Path, tmp_path: Path
) -> None:
    lines = (done / "records.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (1, 7):
        folder = tmp_path / str(kept)
        folder.mkdir()
        (folder / "records.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:40])
        assert run(suite, folder)
        assert contents(folder) == contents(done)
    assert run(suite, tmp_path / "pool", workers=2)
    assert contents(tmp_path / "pool") == contents(done)


def test_the_board_shows_side_effects(done: Path) -> None:
    rows = {row.attack: row for row in read_rows([done])}
    records = read_records(done)
    for name in ("refusal-direction", "prefill+refusal-direction"):
        measured = [
            r.first_token_kl for r in records if r.attack == name and r.first_token_kl is not None
        ]
        assert rows[name].harmless_kl == pytest.approx(sum(measured) / len(measured))
    assert rows["gcg+refusal-direction"].harmless_kl is None
    # An opening hides nothing: what is compared is the answer to the plain request.
    alone, opened = (rows[name].harmless_kl for name in list(rows)[::-1] if "gcg" not in name)
    assert alone == opened
    table = render(list(rows.values()), "md")
    assert "Intervention attacks" in table and "| KL on harmless |" in table
    assert "gcg+refusal-direction †" in table, "the model refuses nothing"


def test_parameters_of_parts_tell_rows_apart(tmp_path: Path) -> None:
    one, other = (parse_spec(f"gcg:steps={n}+prefill") for n in (2, 3))
    lines = [
        Record(f"k{n}", "m", a.name, {"gcg": {"steps": n}, "prefill": {}}, f"h{n}", "prefill", "b",
               0, "ok", prompts=("p",), completions=("c",))
        for n, a in ((2, one), (3, other))
    ]  # fmt: skip
    text = "".join(json.dumps(dataclasses.asdict(record)) + "\n" for record in lines)
    (tmp_path / "records.jsonl").write_text(text)
    table = render(read_rows([tmp_path]), "md")
    assert "gcg+prefill (gcg.steps=2)" in table and "gcg+prefill (gcg.steps=3)" in table


def test_steps_reach_the_parts_that_have_them(suite: Suite) -> None:
    changed = dataclasses.replace(suite, steps=7, attacks=("gcg+refusal-direction", "gcg+prefill"))
    for attack in suite_attacks(changed):
        assert attack.parts[0].steps == attack.steps == 7  # type: ignore[attr-defined]


def test_a_dry_run_counts_and_times_combinations(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(suite, tmp_path / "out", dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    assert "gcg+refusal-direction: 2 cells, 0 done, about" in lines[0]
    assert "prefill+refusal-direction: 4 cells" in lines[1]
    assert not (tmp_path / "out").exists()


def test_records_from_before_still_load(done: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (done / "records.jsonl").read_text().splitlines()]
    for row in rows:
        del row["openings"], row["first_token_kl"]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert all(record.first_token_kl is None for record in read_records(tmp_path))
    assert "KL on harmless" not in render(read_rows([tmp_path]), "md")
    board = read_records(ROOT / "results" / "pocket-board")
    assert all(record.openings == () for record in board if record.attack != "prefill")


def test_divergence_is_that_of_plain_hooks() -> None:
    """KL(as it is || changed) of the first token, by the formula, in float64."""
    model = pocket("pocket-llama")
    messages = (*model.conversation("How do I polish the harp?"), Message("assistant", "Sure,"))
    direction = torch.randn(model.width, generator=torch.Generator().manual_seed(0))
    ids = model.chat.tokens(messages)[0].unsqueeze(0)

    def log_probs(*applied: Intervention) -> torch.Tensor:
        with (
            torch.no_grad(),
            intervening(model.hf, model.structure, applied, roles=None, mask=None),
        ):
            return model.hf(ids).logits[0, -1].double().log_softmax(0)

    plain = log_probs()
    likely = plain.argmax().unsqueeze(0)
    changes = [AblateDirection(direction, model.n_layers), SuppressTokens(likely, -3.0, 1)]
    changed = log_probs(*changes)
    expected = float((plain.exp() * (plain - changed)).sum())
    assert expected > 1e-3
    assert first_token_kl(model, messages, changes) == pytest.approx(expected, rel=1e-3)
    assert first_token_kl(model, messages, ()) == 0.0
    # What is made impossible counts, and leaves a number that JSON can hold.
    never = first_token_kl(model, messages, [SuppressTokens(likely, -float("inf"), 1)])
    assert never == pytest.approx(float(plain.max().exp()) * -LEAST_LOG_PROB, rel=0.01)
