"""A cell's key holds everything that decides its outcome; its randomness is its own."""

from __future__ import annotations

from dataclasses import replace

import torch

from attacks import load
from attacks.core.behavior import Behavior
from benchmarks.harness.cells import ModelId, Settings, artefact_id, cell_generator, cell_key
from benchmarks.inputs.suites import attack_hash

MODEL = ModelId("m", "r1", "float32", None)
GCG = load("gcg", steps=3)
BEHAVIOR = Behavior("b", "text", target="Sure", reference=("fact",))
SETTINGS = Settings(8, 1, "never", "reference", ("reference",), None)


def key(**changes: object) -> str:
    """The key of a cell with some ingredients changed."""
    values = {
        "model": MODEL,
        "attack": GCG,
        "artefact_hash": "h",
        "behavior": BEHAVIOR,
        "seed": 0,
        "settings": SETTINGS,
        "openers": ("no",),
        **changes,
    }
    return cell_key(**values)  # type: ignore[arg-type]


def test_a_key_changes_with_each_ingredient() -> None:
    keys = [
        key(),
        key(model=MODEL._replace(name="n")),
        key(model=MODEL._replace(revision="r2")),
        key(model=MODEL._replace(dtype="float64")),
        key(model=MODEL._replace(system="Be brief.")),
        key(attack=load("gcg", steps=4)),
        key(attack=load("random-search", steps=3)),
        key(artefact_hash="i"),
        key(seed=1),
        key(openers=("no", "sorry")),
        *(
            key(behavior=replace(BEHAVIOR, **{name: value}))
            for name, value in {
                "id": "c",
                "text": "texts",
                "target": None,
                "category": "d",
                "harmful": False,
                "twin": "t",
                "reference": ("facts",),
                "decoys": ("x",),
            }.items()
        ),
        *(
            key(settings=replace(SETTINGS, **{name: value}))
            for name, value in {
                "max_new_tokens": 9,
                "attempts": 2,
                "stop": "first-success",
                "stop_judge": "phrases",
            }.items()
        ),
    ]
    assert len(set(keys)) == len(keys)


def test_budget_and_judges_are_no_part_of_a_key() -> None:
    assert key() == key(settings=replace(SETTINGS, seconds=3.0, judges=("phrases",)))
    assert key() == key(attack=load("gcg", steps=3, width=GCG.width))  # type: ignore[attr-defined]


def test_an_artefact_is_identified_by_what_it_is_fitted_on() -> None:
    train = [BEHAVIOR, Behavior("c", "other", harmful=False)]
    ids = [
        artefact_id(MODEL, "gcg", train, 0),
        artefact_id(MODEL, "gcg", train[:1], 0),
        artefact_id(MODEL, "gcg", train, 1),
        artefact_id(MODEL, "ssr", train, 0),
        artefact_id(MODEL._replace(revision="r2"), "gcg", train, 0),
        artefact_id(MODEL._replace(system="Be brief."), "gcg", train, 0),
    ]
    assert len(set(ids)) == len(ids)


def test_randomness_depends_on_the_cell_alone() -> None:
    def draw(seed: int = 0, steps: int = 3, behavior: str = "b") -> float:
        rng = cell_generator(load("gcg", steps=steps), behavior, seed)
        return float(torch.rand(1, generator=rng))

    assert draw() == draw()
    assert len({draw(), draw(seed=1), draw(steps=4), draw(behavior="c")}) == 4
    assert attack_hash(GCG) == attack_hash(load("gcg", steps=3)) != attack_hash(load("gcg"))
