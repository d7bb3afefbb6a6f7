"""Candidates that share a beginning: the same losses, in fewer operations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pytest
import torch

from attacks.core.artefact import EMPTY, Artefact
from attacks.core.behavior import Behavior
from attacks.core.objectives import AttentionLoss, Objective, ProbeLoss, TargetCrossEntropy
from attacks.core.prompt import suffixed
from attacks.core.search import Evaluator, evaluate
from attacks.core.search.candidates import swap, uniform_choices
from attacks.core.search.sharing import Group, common_filling, groups, partition
from conftest import pocket, tiny

SLOTS = (7, 8, 9, 12)


def drawn(n: int, n_replace: int = 1) -> torch.Tensor:
    current = torch.arange(4)
    choices = torch.arange(10, 60).expand(4, -1)
    rng = torch.Generator().manual_seed(0)
    return swap(current, choices, width=n, n_replace=n_replace, rng=rng)


def test_the_common_filling_is_where_the_search_stands() -> None:
    assert common_filling(drawn(40)).tolist() == [0, 1, 2, 3]
    assert common_filling(torch.tensor([[5, 6]])).tolist() == [5, 6]


@pytest.mark.parametrize("n_replace", [1, 3])
def test_every_candidate_is_in_one_group_that_begins_before_it_differs(n_replace: int) -> None:
    candidates, filling = drawn(25, n_replace), torch.arange(4)
    start, stop, end = 5, 11, 20

    def found(overhead: float) -> list[Group]:
        limits = {"start": start, "stop": stop, "end": end}
        return groups(candidates, filling, SLOTS, **limits, overhead=overhead)

    several = found(0.0)
    assert sorted(row for group in several for row in group.rows.tolist()) == list(range(25))
    assert len(several) > 1 and several[0].start >= start
    for group in several:
        for row in group.rows:
            first = int((candidates[row] != filling).int().argmax())
            assert group.start <= min(SLOTS[first], stop)
    (alone,) = found(1e9)
    assert alone.start == start and alone.rows.tolist() == list(range(25))


@pytest.mark.parametrize("overhead", [0.0, 3.0, 10.0, 40.0, 1e9])
def test_no_partition_is_cheaper(overhead: float) -> None:
    starts, counts, end = [5, 7, 8, 9, 11], [0, 6, 7, 3, 9], 20

    def cost(chosen: Sequence[int]) -> float:
        edges = zip(chosen, [*chosen[1:], len(starts)], strict=True)
        return sum(sum(counts[a:b]) * (end - starts[a]) + overhead for a, b in edges)

    every = [(0, *more) for size in range(5) for more in combinations(range(1, 5), size)]
    assert cost(partition(starts, counts, end, overhead)) == min(map(cost, every))


PROBE = {"weight.2": torch.linspace(-1, 1, 128), "bias.2": torch.tensor(0.1)}


@pytest.mark.parametrize("name", ["pocket-llama", "pocket-gemma2"])
@pytest.mark.parametrize(
    ("objective", "artefact"),
    [
        (TargetCrossEntropy(), EMPTY),
        (ProbeLoss((2,)), Artefact(PROBE)),
        (AttentionLoss(((2, 0), (1, 3)), "dazzle", 2), EMPTY),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("n_replace", [1, 4])
def test_shared_equals_unshared(
    name: str,
    objective: Objective,
    artefact: Artefact,
    n_replace: int,
    behavior: Behavior,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Otherwise so few candidates would not be worth several passes.
    for part in ("_OVERHEAD", "_FETCHING"):
        monkeypatch.setattr(evaluate, part, {True: 0.0, False: 0.0})
    model = pocket(name)
    rng = torch.Generator().manual_seed(0)
    prompt = model.prompt(suffixed(behavior, 6), target=behavior.target, rng=rng)
    bound = objective.bind(model, prompt, artefact)
    choices = uniform_choices(prompt.slot_ids, model.chat.allowed)
    candidates = swap(prompt.slot_ids, choices, width=24, n_replace=n_replace, rng=rng)

    def run(**options: bool) -> tuple[torch.Tensor, int]:
        evaluator = Evaluator(model, prompt, bound, **options)
        before = model.meter.flops
        return evaluator.losses(candidates), model.meter.flops - before

    shared, cost = run()
    unshared, dearer = run(share=False)
    uncached, dearest = run(use_cache=False)
    torch.testing.assert_close(shared, unshared, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shared, uncached, rtol=1e-4, atol=1e-5)
    assert dearer < dearest
    if n_replace == 1:
        assert cost < dearer


def test_a_single_candidate_and_equal_ones_are_no_special_case(behavior: Behavior) -> None:
    model = tiny("llama")
    rng = torch.Generator().manual_seed(0)
    prompt = model.prompt(suffixed(behavior, 3), target="Sure", rng=rng)
    evaluator = Evaluator(model, prompt, TargetCrossEntropy().bind(model, prompt, EMPTY))
    one = evaluator.losses(prompt.slot_ids.unsqueeze(0))
    torch.testing.assert_close(evaluator.losses(prompt.slot_ids.expand(5, -1)), one.expand(5))
