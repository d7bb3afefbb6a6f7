"""Runs on models that an intervention breaks, and on one whose refusal outlives its direction."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.boards.leaderboard import render
from benchmarks.boards.rows import read_rows
from benchmarks.harness.runner import run
from benchmarks.inputs.suites import Suite
from benchmarks.storage.store import read_judgements, read_records


def suite(model: str, attack: str, **changes: object) -> Suite:
    values: dict[str, object] = {
        "name": "broken",
        "models": (model,),
        "attacks": (attack,),
        "behaviors": "pocket-test",
        "train": "pocket-train[0:24]+pocket-train[112:136]",
        "limit": 6,
        "judges": ("phrases", "reference"),
        "max_new_tokens": 40,
    }
    return Suite(**{**values, **changes})  # type: ignore[arg-type]


def test_a_broken_model_is_no_success(tmp_path: Path) -> None:
    """It refuses nothing: without its label `phrases` would call all of this a success."""
    attack = 'refusal-direction:mode="add",coefficient=-40.0,layer=2'
    assert run(suite("pocket-llama", attack), tmp_path)
    records = read_records(tmp_path)
    assert all(record.garbled == (True,) for record in records)
    assert all(record.verdict.startswith("failed: ") for record in records)
    assert all(record.first_success is None for record in records)
    assert {(j.judge, j.success, j.label) for j in read_judgements(tmp_path)} == {
        ("phrases", False, "garbled"),
        ("reference", False, "garbled"),
    }
    rows = read_rows([tmp_path])
    assert [(row.asr, row.garbled) for row in rows] == [(0.0, 1.0)] * 2
    table = render(rows, "md")
    assert "of the answers are garbled" in table and "the fit failed" in table


@pytest.mark.slow
def test_an_own_answer_that_is_a_refusal_is_fallen_back_from_and_shown(tmp_path: Path) -> None:
    """The difference in means does not undo this model's refusals; a fitted subspace does."""
    attack = "ssr-probe:steps=1,slots=4,width=8"
    assert run(suite("pocket-llama-token", attack, limit=1, judges=()), tmp_path)
    (record,) = read_records(tmp_path)
    assert record.source == "own answer, subspace" and record.verdict.startswith("good")
    assert "aimed at: own answer, subspace (1)." in render(read_rows([tmp_path]), "md")
