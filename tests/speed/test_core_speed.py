"""How long the parts of a search step take: ``make speed``. In `make test` each runs once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attacks.core.artefact import EMPTY
from attacks.core.behavior import Behavior
from attacks.core.objectives import TargetCrossEntropy
from attacks.core.prompt import suffixed
from attacks.core.search import Evaluator
from attacks.core.search.candidates import swap, top_tokens
from attacks.core.sites import Site
from conftest import pocket

WIDTH, TOPK, SLOTS = 128, 64, 10
Timer = Callable[..., Any]


@pytest.fixture
def evaluator(behavior: Behavior) -> Evaluator:
    model = pocket("pocket-llama")
    rng = torch.Generator().manual_seed(0)
    prompt = model.prompt(suffixed(behavior, SLOTS), target=behavior.target, rng=rng)
    return Evaluator(model, prompt, TargetCrossEntropy().bind(model, prompt, EMPTY))


@pytest.fixture
def candidates(evaluator: Evaluator) -> torch.Tensor:
    current = evaluator.prompt.slot_ids
    gradient, _ = evaluator.gradient(current)
    choices = top_tokens(gradient, current, evaluator.model.chat.allowed, TOPK)
    rng = torch.Generator().manual_seed(0)
    return swap(current, choices, width=WIDTH, n_replace=1, rng=rng)


def test_gradient(benchmark: Timer, evaluator: Evaluator) -> None:
    gradient, _ = benchmark(evaluator.gradient, evaluator.prompt.slot_ids)
    assert gradient.shape == (SLOTS, evaluator.model.chat.vocab_rows)


def test_candidate_losses(benchmark: Timer, evaluator: Evaluator, candidates: torch.Tensor) -> None:
    assert benchmark(evaluator.losses, candidates).shape == (WIDTH,)


def test_round_trip_filter(
    benchmark: Timer, evaluator: Evaluator, candidates: torch.Tensor
) -> None:
    assert benchmark(evaluator.model.chat.survives, evaluator.prompt, candidates).any()


@pytest.mark.parametrize("way", ["nnsight", "plain"])
def test_forward_pass(
    benchmark: Timer, way: str, evaluator: Evaluator, candidates: torch.Tensor
) -> None:
    """What nnsight adds to a pass over the candidates."""
    model = evaluator.model
    embeds = model.embed(evaluator.prompt.fill(candidates))
    last = embeds.shape[1] - 1

    @torch.no_grad()
    def traced() -> torch.Tensor:
        return model.trace(embeds, [Site(-1, "logits", (last,))])[Site(-1, "logits", (last,))]

    @torch.no_grad()
    def plain() -> torch.Tensor:
        output = model.hf(inputs_embeds=embeds, use_cache=False, logits_to_keep=1)
        logits: torch.Tensor = output.logits
        return logits

    assert benchmark(traced if way == "nnsight" else plain).shape[0] == WIDTH
