"""What is fitted once for each model, and shared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attacks import load
from attacks.core.analysis.survey import Survey
from benchmarks.harness import artefacts, fitting
from benchmarks.harness.cells import prepare_generator
from benchmarks.inputs.behaviors import load_behaviors
from conftest import pocket

NAMES = ("ssr-probe", "ssr-steering", "ssr-attention")


def test_attacks_that_start_from_a_survey_share_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pocket("pocket-llama")
    train = [row.for_attack() for row in load_behaviors("pocket-train")[::10]]
    made: list[Survey] = []
    original = fitting.survey

    def counted(*args: object, **kwargs: object) -> Survey:
        made.append(original(*args, **kwargs))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(fitting, "survey", counted)
    found = {
        name: fitting.fit_attack(model, load(name), train, 0, [tmp_path]).identity for name in NAMES
    }
    assert len(made) == 1
    _, cost = fitting.fit_survey(model, train, 0, [tmp_path])
    assert len(made) == 1 and cost > 0
    rng = prepare_generator("survey", model.revision, 0)
    for name, identity in found.items():
        kept = artefacts.load(tmp_path, identity)
        assert kept is not None and kept.seconds > cost
        alone = load(name).prepare(model, train, rng=rng.manual_seed(rng.initial_seed()))
        assert kept.tensors.keys() == alone.tensors.keys()
        assert all(torch.equal(kept.tensors[key], alone.tensors[key]) for key in alone.tensors)


def test_attacks_that_look_for_one_direction_split_the_prompts_alike(tmp_path: Path) -> None:
    model = pocket("pocket-llama")
    train = [row.for_attack() for row in load_behaviors("pocket-train")[::10]]
    found = []
    for attack in (load("refusal-direction"), load("refusal-direction-weights")):
        kept = artefacts.load(tmp_path, fitting.fit_attack(model, attack, train, 0, [tmp_path])[0])
        assert kept is not None
        found.append(kept)
    assert torch.equal(*(kept.tensors["direction"] for kept in found))
    assert found[0].data["scores"] == found[1].data["scores"]
