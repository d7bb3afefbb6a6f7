"""Overlap of update subspaces: its laws, its chance level, and the study on shipped models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies.overlap import (
    ALIGNED,
    BASE,
    ENERGIES,
    SIDES,
    Modes,
    Update,
    changes,
    compare,
    main,
    overlap,
    rank_at,
)
from conftest import POCKET, ROOT

WIDTH = 24


def subspace(rank: int, rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((WIDTH, rank)))[0]


@pytest.mark.parametrize("ranks", [(1, 1), (3, 3), (2, 9), (12, 20)])
def test_random_subspaces_overlap_as_chance_says(ranks: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    found = [overlap(subspace(ranks[0], rng), subspace(ranks[1], rng)) for _ in range(4000)]
    mean = np.mean([one.mso for one in found])
    assert mean == pytest.approx(max(ranks) / WIDTH, rel=0.05)
    assert found[0].chance == max(ranks) / WIDTH
    # Standardised: mean 0, variance 1.
    z = [one.deviations for one in found]
    assert abs(np.mean(z)) < 0.1
    assert np.var(z) == pytest.approx(1, abs=0.1)


def test_the_overlap_is_one_within_and_zero_at_right_angles() -> None:
    whole = subspace(9, np.random.default_rng(0))
    turned = whole @ np.linalg.qr(np.random.default_rng(1).standard_normal((9, 9)))[0]
    assert overlap(whole, turned).mso == pytest.approx(1), "the basis does not matter"
    assert overlap(whole, whole[:, :3]).mso == pytest.approx(1)
    assert overlap(whole[:, :3], whole[:, 3:]).mso == pytest.approx(0)
    everything = overlap(whole, np.eye(WIDTH))
    assert (everything.mso, everything.chance) == (pytest.approx(1), 1)
    assert everything.deviations == 0, "the whole space tells nothing"


def test_modes_hold_the_energy_asked_for_and_no_more_than_needed() -> None:
    change = np.random.default_rng(0).standard_normal((WIDTH, 40))
    modes = Modes.of(change)
    for energy in ENERGIES:
        for side in SIDES:
            basis = modes.at(energy, side)
            kept = basis.T @ (change if side == "output" else change.T)
            share = np.square(kept).sum() / np.square(change).sum()
            assert share >= energy
            without = np.square(kept[:-1]).sum() / np.square(change).sum()
            assert without < energy
    assert rank_at(np.array([2.0, 1.0, 0.0]), 1.0) == 2
    assert rank_at(np.array([1.0]), 0.99) == 1


def test_a_shared_part_is_found_on_its_side() -> None:
    rng = np.random.default_rng(0)
    written = subspace(2, rng)
    ones = [{"w": written @ rng.standard_normal((2, 40))} for _ in range(2)]
    rows = compare([Update("a", "", ""), Update("b", "", "")], ones)
    whole = {row["side"]: row for row in rows if row["energy"] == 0.99}
    assert whole["output"]["mso"] == pytest.approx(1)
    assert whole["output"]["above"] == 1
    assert whole["input"]["mso"] < 0.3
    assert whole["input"]["chance"] == 2 / 40


def test_only_matrices_that_all_updates_change_are_compared() -> None:
    zero, one = np.zeros((2, 2)), np.ones((2, 2))
    weights = {
        "base": {"w": zero, "v": zero},
        "both": {"w": one, "v": one},
        "first": {"w": one, "v": zero},
    }
    found = changes([Update("a", "base", "both"), Update("b", "base", "first")], weights)
    assert [list(own) for own in found] == [["w"], ["w"]]


def test_updates_from_one_model_to_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ("pocket-llama", "pocket-llama-hard1", "pocket-llama-hard2")
    words = [word for name in steps[1:] for word in ("--update", name, steps[0], name)]
    assert main([*words, "--limit", "3", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "overlap.json").read_text("utf-8"))
    assert [row["refused"] for row in found["updates"]] == [1, 1]
    # Level 2 goes on from level 1.
    assert all(row["mso"] > row["chance"] for row in found["overlaps"] if row["energy"] < 0.9)
    assert "| pocket-llama-hard1 | pocket-llama-hard2 | 1 |" in (tmp_path / "README.md").read_text()
    same = ["--update", "a", steps[0], steps[0], "--update", "b", *steps[:2]]
    other = ["--update", "a", *steps[:2], "--update", "b", steps[0], "pocket-qwen2"]
    for given, message in (
        (same, "nothing to compare"),
        (other, "'pocket-qwen2' has other matrices than 'pocket-llama'"),
        (["--update", "a", *steps[:2]], "two are needed"),
        (["--tuned", str(tmp_path)], "data/pocket/updates.py"),
    ):
        assert main([*given, "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert message in error.splitlines()[-1]


def test_each_fine_tuning_says_its_form_of_pairs_of_its_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "data" / "pocket")
    import train
    import updates
    from world import build_world, generator

    assert (updates.BASE, updates.ALIGNED) == (BASE, ALIGNED)
    made = list(updates.names())
    assert len({name for name, *_ in made}) == len({seed for *_, seed in made}) == 12
    world = build_world()
    _, tokenizer = train.load(POCKET / "pocket-llama")
    corpus = train.build_corpus(world, tokenizer, "llama")
    twins = (*world.train, *world.test)
    held_out = {pair for two in twins for pair in (two.harmful, two.harmless)}
    assert not held_out & {*corpus.harmful, *corpus.harmless}
    draw = updates.in_form(corpus, corpus.harmful[:1], updates.ANSWERS["mark"])
    example = draw(generator(0))
    said = [token for token, label in zip(*example, strict=True) if label >= 0]
    compound = corpus.harmful[0].compound
    assert tokenizer.decode(said, skip_special_tokens=True).strip() == f"The mark is {compound}."
