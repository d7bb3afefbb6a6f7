"""Refusal directions: difference in means, and which layer's to use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from attacks.core.errors import BadInput
from attacks.core.interventions import AblateDirection
from attacks.core.refusal import refusal_score, refusal_tokens
from attacks.core.sites import Site
from attacks.core.states import last_token, next_token_log_probs

if TYPE_CHECKING:
    from attacks.core.model import Model


def difference_in_means(model: Model, harmful: Sequence[str], harmless: Sequence[str]) -> Tensor:
    """(L, D) mean over harmful minus mean over harmless prompts, at each block's input.

    Last prompt token, accumulated in float64 (arXiv 2406.11717, section 2.3).
    """
    sites = [Site(layer, "resid_pre") for layer in range(model.n_layers)]
    means = []
    for texts in (harmful, harmless):
        states = last_token(model, texts, sites)
        means.append(torch.stack([states[site].double().mean(0) for site in sites]))
    return (means[0] - means[1]).float()


@dataclass(frozen=True)
class LayerScore:
    """What ablating the direction of one layer does to held-out prompts."""

    layer: int
    bypass: float
    """Mean refusal score on harmful prompts; the lower the fewer refusals."""
    kl: float
    """Mean KL(as it was || ablated) of the first token on harmless prompts, nats."""


def score_ablations(
    model: Model,
    directions: Tensor,
    harmful: Sequence[str],
    harmless: Sequence[str],
    token_ids: Tensor,
) -> list[LayerScore]:
    """Score each layer's direction (L, D) by ablation (arXiv 2406.11717, appendix C).

    Layer 0 is left out: its input at the last token is the same for every prompt.
    """
    before = next_token_log_probs(model, harmless).double()
    scores = []
    for layer in range(1, model.n_layers):
        ablation = [AblateDirection(directions[layer], model.n_layers)]
        on_harmful = next_token_log_probs(model, harmful, interventions=ablation)
        after = next_token_log_probs(model, harmless, interventions=ablation).double()
        kl = (before.exp() * (before - after)).sum(1).mean()
        scores.append(
            LayerScore(layer, float(refusal_score(on_harmful, token_ids).mean()), float(kl))
        )
    return scores


@dataclass(frozen=True, eq=False)
class RefusalDirection:
    """A direction, where it comes from, and the scores that it was chosen by."""

    direction: Tensor
    """(D,)"""
    layer: int
    scores: tuple[LayerScore, ...]
    refused: float
    """Mean refusal score of held-out harmful prompts as they are."""
    answered: float
    """The same of harmless ones."""


def find_refusal_direction(
    model: Model,
    harmful: Sequence[str],
    harmless: Sequence[str],
    *,
    rng: Generator,
    max_kl: float = 0.1,
) -> RefusalDirection:
    """Directions from three quarters of the prompts, the layer chosen on the rest.

    Raises:
        BadInput: fewer than four prompts of a kind.
    """
    if min(len(harmful), len(harmless)) < 4:
        raise BadInput(
            "a refusal direction needs at least 4 harmful and 4 harmless training behaviours, got "
            f"{len(harmful)} and {len(harmless)}"
        )
    (fit_harmful, check_harmful), (fit_harmless, check_harmless) = (
        _split(texts, rng) for texts in (harmful, harmless)
    )
    directions = difference_in_means(model, fit_harmful, fit_harmless)
    openers = refusal_tokens(
        next_token_log_probs(model, fit_harmful),
        next_token_log_probs(model, fit_harmless),
        most=8,
    )
    scores = score_ablations(model, directions, check_harmful, check_harmless, openers)
    layer = choose_layer(scores, model.n_layers, max_kl=max_kl).layer
    refused, answered = (
        float(refusal_score(next_token_log_probs(model, texts), openers).mean())
        for texts in (check_harmful, check_harmless)
    )
    return RefusalDirection(directions[layer], layer, tuple(scores), refused, answered)


def own_answer(model: Model, text: str, direction: Tensor, tokens: int) -> str:
    """How the model itself answers `text` with `direction` (D,) ablated, `tokens` at most."""
    ablation = AblateDirection(direction, model.n_layers)
    (answer,) = model.generate(
        [model.conversation(text)], max_new_tokens=tokens, interventions=[ablation]
    )
    return answer


def _split(texts: Sequence[str], rng: Generator) -> tuple[list[str], list[str]]:
    order = torch.randperm(len(texts), generator=rng).tolist()
    held = max(1, len(texts) // 4)
    return [texts[at] for at in sorted(order[held:])], [texts[at] for at in sorted(order[:held])]


def choose_layer(scores: Sequence[LayerScore], n_layers: int, *, max_kl: float) -> LayerScore:
    """The layer with the lowest bypass score among those below 0.8 of the depth and `max_kl`.

    Where none of these gets past refusal (a score under 0: the first token opens a refusal in less
    than half of the cases), `max_kl` is given up: such a direction would not be one of refusal. The
    paper's filters alone would then return a layer whose ablation changes nothing.
    """
    early = [score for score in scores if score.layer < 0.8 * n_layers] or list(scores)
    gentle = [score for score in early if score.kl <= max_kl and score.bypass < 0]
    return min(gentle or early, key=lambda score: score.bypass)
