"""Refusal directions: difference in means, and which layer's to use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attacks.core.interventions import AblateDirection
from attacks.core.refusal import refusal_score
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


def choose_layer(scores: Sequence[LayerScore], n_layers: int, *, max_kl: float) -> LayerScore:
    """The layer with the lowest bypass score among those below 0.8 of the depth and `max_kl`.

    Where no layer meets `max_kl`, the one with the lowest KL is taken.
    """
    early = [score for score in scores if score.layer < 0.8 * n_layers] or list(scores)
    gentle = [score for score in early if score.kl <= max_kl]
    if not gentle:
        return min(early, key=lambda score: score.kl)
    return min(gentle, key=lambda score: score.bypass)
