"""Objectives over attention heads."""

from __future__ import annotations

import pytest
import torch

from attacks.core.artefact import EMPTY
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.model import Model
from attacks.core.objectives import AttentionLoss
from attacks.core.prompt import INSTRUCTION, SLOT, Message, Prompt, suffixed
from attacks.core.search import Evaluator
from conftest import check_gradient, pocket, tiny

KINDS = ("dazzle", "dazzle-score", "ablation", "full-ablation")


def prompt_of(model: Model, behavior: Behavior, slots: int = 5) -> Prompt:
    rng = torch.Generator().manual_seed(1)
    return model.prompt(suffixed(behavior, slots), target=behavior.target, rng=rng)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", [1, 3])
def test_attention_losses_against_the_formula(kind: str, last: int, behavior: Behavior) -> None:
    model = tiny("llama")
    prompt = prompt_of(model, behavior)
    heads = ((0, 1), (2, 0), (2, 3))
    bound = AttentionLoss(heads, kind, last).bind(model, prompt, EMPTY)  # type: ignore[arg-type]
    length = len(prompt.ids)
    assert {site.layer for site in bound.reads} == {0, 2}
    rng = torch.Generator().manual_seed(0)
    width = 8 if kind == "full-ablation" else length
    trace = {site: torch.randn((2, last, 4, width), generator=rng) for site in bound.reads}
    by_layer = {site.layer: trace[site] for site in bound.reads}
    slots = prompt.slots.tolist()
    asked = [
        at
        for at, role in enumerate(prompt.roles.tolist())
        if role == INSTRUCTION and at not in slots
    ]
    assert asked and len(slots) == 5
    losses = bound(trace)
    for row in range(2):
        expected = 0.0
        for layer, head in heads:
            for query in range(last):
                values = by_layer[layer][row, query, head]
                if kind == "full-ablation":
                    expected += float((values**2).sum() ** 0.5)
                elif kind == "ablation":
                    expected += sum(float(values[key]) for key in asked)
                else:
                    total = sum(float(values[key]) for key in slots)
                    expected += (1.0 if kind == "dazzle" else 0.0) - total
        assert float(losses[row]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert all(site.positions == tuple(range(length - last, length)) for site in bound.reads)


def test_scores_after_the_query_do_not_count(rng: torch.Generator) -> None:
    """The first of the queries is the first slot, which does not see the second."""
    model = tiny("llama")
    prompt = model.prompt((Message("user", f"Paint.{SLOT * 2}"),), rng=rng)
    last = len(prompt.ids) - int(prompt.slots[0])
    bound = AttentionLoss(((0, 0),), "dazzle-score", last).bind(model, prompt, EMPTY)
    ones = {bound.reads[0]: torch.ones(1, last, 4, len(prompt.ids))}
    assert float(bound(ones)) == -(2 * last - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_bound_losses_on_a_model_stay_in_their_range(kind: str, behavior: Behavior) -> None:
    model = pocket("pocket-llama")
    prompt = prompt_of(model, behavior)
    heads = ((1, 0), (2, 3))
    bound = AttentionLoss(heads, kind, 2).bind(model, prompt, EMPTY)  # type: ignore[arg-type]
    filled = prompt.slot_ids.repeat(3, 1)
    filled[1], filled[2] = filled[1].flip(0), filled[2].roll(1)
    together = Evaluator(model, prompt, bound).losses(filled)
    plain = Evaluator(model, prompt, bound, use_cache=False)
    alone = torch.cat([plain.losses(row.unsqueeze(0)) for row in filled])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)
    if kind in ("dazzle", "ablation"):
        assert (together >= 0).all() and (together <= 4).all()


@pytest.mark.parametrize("name", ["pocket-llama", "pocket-gemma2"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_equals_directional_finite_differences(
    name: str, kind: str, behavior: Behavior
) -> None:
    model = pocket(name, "float64")
    prompt = prompt_of(model, behavior)
    heads = ((1, 0), (2, 3), (2, 1))
    bound = AttentionLoss(heads, kind, 2).bind(model, prompt, EMPTY)  # type: ignore[arg-type]
    check_gradient(
        Evaluator(model, prompt, bound),
        Evaluator(model, prompt, bound, use_cache=False),
        tolerance=2e-5,
    )


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (AttentionLoss(((9, 0),)), r"no head \(9, 0\)"),
        (AttentionLoss(((0, 4),)), r"no head \(0, 4\)"),
        (AttentionLoss(((0, 0),), last=999), "no last 999"),
        (AttentionLoss(((0, 0),)), "no positions to look at"),
    ],
)
def test_what_cannot_be_bound_is_refused(loss: AttentionLoss, match: str) -> None:
    model = tiny("llama")
    with pytest.raises(BadInput, match=match):
        loss.bind(model, model.plain("Hello."), EMPTY)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(BadInput, match="valid: dazzle, dazzle-score"):
        AttentionLoss(((0, 0),), "puzzle")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="at least one head"):
        AttentionLoss(())
