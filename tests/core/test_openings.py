"""Losses of which only the lowest are asked for: the same lowest, in fewer operations."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.core.artefact import Artefact
from attacks.core.model import Model
from attacks.core.objectives import (
    Objective,
    ProbeLoss,
    RefusalOpeners,
    RefusalProjection,
    SlotAttention,
    TargetCrossEntropy,
    TargetMargin,
    TargetMellowmax,
)
from attacks.core.prompt import suffixed
from attacks.core.search import CoordinateSearch, Evaluator, Moves, evaluate
from attacks.core.search.candidates import swap, uniform_choices
from attacks.core.search.staged import Staged
from benchmarks.inputs.behaviors import load_behaviors
from conftest import pocket

FITTED = Artefact(
    {
        "token_ids": torch.tensor([40, 41]),
        "direction": torch.linspace(-1, 1, 128),
        "projection": torch.tensor(0.0),
        "weight.2": torch.linspace(-1, 1, 128),
        "bias.2": torch.tensor(0.1),
    }
)
BOUNDED: list[Objective] = [
    TargetCrossEntropy(),
    TargetMellowmax(2.0),
    TargetMargin(0.1),
    TargetCrossEntropy() + 0.5 * RefusalOpeners() + 0.1 * RefusalProjection(2),
]
UNBOUNDED: list[Objective] = [
    TargetMellowmax(2.0, on="logits"),
    TargetCrossEntropy() + 50.0 * SlotAttention(),
    TargetCrossEntropy() + -1.0 * RefusalOpeners(),
    ProbeLoss((2,)),
]
K, WIDTH = 4, 40


@pytest.fixture(autouse=True)
def _passes_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few candidates would not be worth several passes otherwise."""
    for part in ("_OVERHEAD", "_FETCHING"):
        monkeypatch.setattr(evaluate, part, {True: 0.0, False: 0.0})


def work_of(
    objective: Objective, fitted: Artefact = FITTED, **options: Any
) -> tuple[Evaluator, Tensor]:
    """An evaluator on a model that refuses, and 40 candidates, a few of which it half answers."""
    behavior = next(b for b in load_behaviors("pocket-test") if b.harmful)
    model = pocket("pocket-llama-hard1")
    rng = torch.Generator().manual_seed(0)
    prompt = model.prompt(suffixed(behavior, 6), target=behavior.target, rng=rng)
    choices = uniform_choices(prompt.slot_ids, model.chat.allowed)
    candidates = swap(prompt.slot_ids, choices, width=WIDTH, n_replace=1, rng=rng)
    return Evaluator(model, prompt, objective.bind(model, prompt, fitted), **options), candidates


def cost(model: Model, work: Evaluator, candidates: Tensor, k: int | None) -> tuple[Tensor, int]:
    before = model.meter.flops
    return work.losses(candidates, k), model.meter.flops - before


@pytest.mark.parametrize("batch_size", [512, 16])
@pytest.mark.parametrize("objective", BOUNDED, ids=lambda value: type(value).__name__)
def test_the_lowest_are_the_same_and_the_others_higher(
    objective: Objective, batch_size: int
) -> None:
    work, candidates = work_of(objective, batch_size=batch_size)
    expected, whole = cost(work.model, work, candidates, None)
    losses, spent = cost(work.model, work, candidates, K)
    known = losses.isfinite()
    assert K <= known.sum() < len(candidates)
    torch.testing.assert_close(losses[known], expected[known], rtol=1e-4, atol=1e-5)
    assert known[expected.argsort()[:K]].all()
    assert spent < whole


@pytest.mark.parametrize("objective", BOUNDED, ids=lambda value: type(value).__name__)
def test_an_opening_is_never_above_its_loss(objective: Objective) -> None:
    work, candidates = work_of(objective)
    opening = work.objective.opening
    assert opening is not None
    below = Evaluator(work.model, work.prompt, opening).losses(candidates)
    assert (below <= work.losses(candidates) + 1e-5).all()


@pytest.mark.parametrize("objective", UNBOUNDED, ids=lambda value: type(value).__name__)
def test_without_an_opening_all_losses_are_computed(objective: Objective) -> None:
    work, candidates = work_of(objective)
    losses = work.losses(candidates, K)
    torch.testing.assert_close(losses, work.losses(candidates), rtol=1e-4, atol=1e-5)


def test_where_the_opening_is_little_of_the_loss_it_is_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work, candidates = work_of(TargetCrossEntropy())
    work.gradient(work.prompt.slot_ids)
    assert not work.losses(candidates, K).isfinite().all()
    monkeypatch.setattr(evaluate, "_TELLING", 1.0)
    work.gradient(work.prompt.slot_ids)
    assert work.losses(candidates, K).isfinite().all()


def test_what_came_before_changes_nothing() -> None:
    """So that a search that goes on from a checkpoint computes the same, to the last bit."""
    fresh, candidates = work_of(TargetCrossEntropy())
    used, _ = work_of(TargetCrossEntropy())
    used.gradient(candidates[0])
    used.losses(candidates[20:], K)
    assert torch.equal(fresh.losses(candidates, K), used.losses(candidates, K))


def test_it_can_be_switched_off() -> None:
    work, candidates = work_of(TargetCrossEntropy(), bound=False)
    assert work.losses(candidates, K).isfinite().all()


@pytest.mark.parametrize(
    "numbers",
    [
        {"buffer": 0, "keep": 1},
        {"buffer": 3},
        {"buffer": 2, "moves": Moves(merge=5)},
        {"buffer": 4, "patience": 1, "moves": Moves(fresh=True)},
    ],
    ids=str,
)
def test_a_search_goes_the_same_way(numbers: dict[str, Any]) -> None:
    def run(**options: Any) -> list[tuple[list[list[int]], list[float]]]:
        work, _ = work_of(TargetCrossEntropy(), **options)
        search = CoordinateSearch(4, 48, 32, **({"keep": 3} | numbers))
        steps = search.run(work.model, work.prompt, work, rng=torch.Generator().manual_seed(1))
        return [(found.ids.tolist(), found.losses.tolist()) for found in steps]

    for one, other in zip(run(), run(bound=False, share=False), strict=True):
        assert one[0] == other[0]
        assert one[1] == pytest.approx(other[1], rel=1e-4)


def test_equal_candidates_are_computed_once() -> None:
    work, candidates = work_of(TargetCrossEntropy())
    once, cheap = cost(work.model, work, candidates, None)
    again, _ = work_of(TargetCrossEntropy())
    thrice, spent = cost(work.model, again, candidates.repeat(3, 1), None)
    torch.testing.assert_close(thrice, once.repeat(3))
    assert spent == cheap


def test_in_two_stages_the_lowest_are_the_same() -> None:
    first, candidates = work_of(ProbeLoss((2,)))
    second, _ = work_of(TargetCrossEntropy())
    for enough in (first.losses(candidates).median(), first.losses(candidates).max()):
        staged = Staged(first, second, float(enough) + 1e-4)
        expected, losses = staged.losses(candidates), staged.losses(candidates, K)
        best = expected.argsort()[:K]
        torch.testing.assert_close(losses[best], expected[best], rtol=1e-4, atol=1e-5)
        assert (losses >= expected - 1e-4).all()


def test_more_wanted_than_there_are() -> None:
    work, candidates = work_of(TargetCrossEntropy())
    few = candidates[:3]
    expected = torch.cat([work.losses(row.unsqueeze(0)) for row in few])
    torch.testing.assert_close(work.losses(few, 10), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_out_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    work, candidates = work_of(TargetCrossEntropy(), batch_size=WIDTH)
    expected = work.losses(candidates, K)
    extended = Evaluator.__dict__["_extended"]
    held: list[weakref.ref[Tensor]] = []

    def hungry(self: Evaluator, inputs: Tensor, *more: Any) -> Any:
        if len(inputs) > 9:
            raise RuntimeError("CUDA out of memory.")
        if self.batch_size < WIDTH:
            assert not any(at() is not None for at in held), "memory of the attempt that failed"
            held.clear()
            return extended(self, inputs, *more)
        found = extended(self, inputs, *more)
        held.append(weakref.ref(found[1].layers[0][0]))
        return found

    monkeypatch.setattr(Evaluator, "_extended", hungry)
    losses = work.losses(candidates, K)
    assert work.batch_size < len(candidates)
    both = losses.isfinite() & expected.isfinite()
    torch.testing.assert_close(losses[both], expected[both], rtol=1e-4, atol=1e-5)
    assert both[expected.argsort()[:K]].all()


def test_an_opening_that_is_not_a_number_is_an_error() -> None:
    broken = Artefact(FITTED.tensors | {"direction": torch.full((128,), float("nan"))})
    work, candidates = work_of(BOUNDED[-1], broken)
    with pytest.raises(FloatingPointError, match="NaN"):
        work.losses(candidates, K)
