"""Which of many directions deserve an exact score: screened from coarse to fine.

An exact score of a direction takes two forward passes of all held-out prompts, and there is one
direction for each token of the template and each layer. So they are first ranked without passes of
their own, then scored on a few prompts, and only the best of these on all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attacks.core.interventions import Context, Intervention
from attacks.core.prompt import Prompt
from attacks.core.refusals.openers import refusal_score
from attacks.core.sites import RESIDUAL_WRITES, Site

if TYPE_CHECKING:
    from attacks.core.model import Model

MOST_EXACT = 64
"""Up to so many directions are all scored exactly on all prompts."""
COARSE, NEAR, FINE = 20, 8, 6
"""Directions scored on a few prompts, with how many beside the best of them, and on all prompts."""
APART = 3
"""Layers between directions of one token that are scored first: neighbours are much alike."""
FEW = 8
"""Prompts of a kind that the coarse scores are taken on."""


class Placed(Protocol):
    """A score of the direction of one place, such as `DirectionScore`."""

    @property
    def position(self) -> int:
        """Counted from the end of the prompt."""

    @property
    def layer(self) -> int:
        """Block whose input it was read at."""


Score = TypeVar("Score", bound=Placed)


@dataclass(frozen=True, eq=False)
class FirstOrder:
    """First-order effects (P, L) of directions on mean refusal scores, by one backward pass.

    They overrate what saturates and know nothing of damage, so they only rank.
    """

    ablated: Tensor
    """On harmful prompts, of ablating a direction at every residual write."""
    added: Tensor
    """On harmless prompts, of adding it at the input of its block."""


def first_order(
    model: Model,
    directions: Tensor,
    harmful: Sequence[Prompt],
    harmless: Sequence[Prompt],
    token_ids: Tensor,
) -> FirstOrder:
    """What a gradient of the refusal score says that directions (P, L, D) do.

    With x what is written at one token of one site, g the gradient of the score with respect to it,
    and r a unit direction, taking r out of everything that is written changes the score by
    - sum (x . r)(g . r), to first order, over the token embeddings and all outputs of attention and
    MLP (attribution patching, arXiv 2310.10348, with the ablated activation as the other run). What
    ablation takes out at blocks' inputs is nothing beyond that.
    """
    flat = directions.flatten(0, 1)
    units = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-30)
    ablated, added = torch.zeros(len(flat)), torch.zeros(directions.shape[:2])
    for writes in _backward(model, harmful, token_ids):
        for site, (x, g) in writes.items():
            if site.name != "resid_pre" or site.layer == 0:
                ablated -= ((x @ units.T) * (g @ units.T)).sum(0)
    for writes in _backward(model, harmless, token_ids):
        for layer in range(model.n_layers):
            added[:, layer] += directions[:, layer] @ writes[Site(layer, "resid_pre")][1].sum(0)
    return FirstOrder(ablated.view(added.shape) / len(harmful), added / len(harmless))


def _backward(
    model: Model, prompts: Sequence[Prompt], token_ids: Tensor
) -> Iterator[dict[Site, tuple[Tensor, Tensor]]]:
    """For each batch: what is written (B * T, D) at each residual write, and its gradient.

    Of the sum of the refusal scores. Prompts of a batch are filled up at the end, where gradients
    are 0.
    """
    order = sorted(prompts, key=lambda prompt: len(prompt.ids))
    for start in range(0, len(order), FEW):
        batch = order[start : start + FEW]
        ids, roles = (
            pad_sequence([getattr(prompt, name) for prompt in batch], batch_first=True)
            for name in ("ids", "roles")
        )
        ends = sorted({len(prompt.ids) - 1 for prompt in batch})
        read, tap = Site(-1, "logits", tuple(ends)), _Tap(model.n_layers)
        with torch.enable_grad():
            embeds = model.embed(ids).detach().requires_grad_()
            logits = model.trace(embeds, [read], interventions=[tap], roles=roles)[read]
            last = [ends.index(len(prompt.ids) - 1) for prompt in batch]
            rows = logits[torch.arange(len(batch)), last].double().log_softmax(1)
            score = refusal_score(rows, token_ids.to(rows.device)).sum()
            shifts = [shift for _, shift in tap.seen.values()]
            gradients = torch.autograd.grad(score, shifts, allow_unused=True)
        yield {
            site: (
                x.flatten(0, 1).float().cpu(),
                (torch.zeros_like(x) if g is None else g).flatten(0, 1).float().cpu(),
            )
            for (site, (x, _)), g in zip(tap.seen.items(), gradients, strict=True)
        }


@dataclass(frozen=True, eq=False)
class _Tap(Intervention):
    """Changes nothing; keeps what is written at each site, and a leaf that has its gradient."""

    n_layers: int
    seen: dict[Site, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(Site(at, name) for at in range(self.n_layers) for name in RESIDUAL_WRITES)

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        shift = torch.zeros_like(activation, requires_grad=True)
        self.seen[ctx.site] = (activation.detach(), shift)
        return activation + shift


def screened(
    model: Model,
    directions: Tensor,
    harmful: Sequence[Prompt],
    harmless: Sequence[Prompt],
    token_ids: Tensor,
    *,
    score: Callable[[Tensor, Sequence[Prompt], Sequence[Prompt]], list[Score]],
    choose: Callable[[Sequence[Score]], Score],
    depth: float,
) -> Tensor:
    """Directions (P, L, D) with all made 0 that are not worth an exact score.

    Of one token's (P = 1), and up to `MOST_EXACT`, all stay. Otherwise `COARSE` of them are scored
    on `FEW` prompts of a kind: those with the largest first-order effects of addition and of
    ablation, and some spread evenly, none of them close to another of the same token (`APART`).
    Then come the layers between, beside the two best. Of all these stay `FINE`: the best by
    `choose`, the best without it, and so on.

    Args:
        model: the model.
        directions: 0 where there is none.
        harmful: held-out prompts.
        harmless: as well.
        token_ids: (K,) refusal openers.
        score: scores of those directions that are not 0, on harmful and harmless prompts.
        choose: the best score.
        depth: share of the layers from which on only the last token's directions are scored.
    """
    there = directions.any(-1)
    deep = torch.arange(model.n_layers) >= depth * model.n_layers
    there[:-1, deep] = False
    if len(directions) == 1 or int(there.sum()) <= MOST_EXACT:
        return directions
    some = (_spread(harmful, FEW), _spread(harmless, FEW))
    effects = first_order(model, directions, *some, token_ids)
    places = [(at, layer) for at, layer in there.nonzero().tolist()]
    by_ablation = sorted(places, key=lambda place: float(effects.ablated[place]))
    by_addition = sorted(places, key=lambda place: -float(effects.added[place]))
    turns = zip_longest(by_addition, by_ablation, _spread(places, COARSE // 3))
    coarse: list[tuple[int, int]] = []
    for place in (place for turn in turns for place in turn if place):
        if len(coarse) < COARSE and all(_apart(place, other) >= APART for other in coarse):
            coarse.append(place)
    scores = score(_only(directions, coarse), *some)
    best = _ranked(scores, choose, len(directions), 2)
    beside = [place for one in best for place in places if 0 < _apart(place, one) < APART]
    near = [place for place in dict.fromkeys(beside) if place not in coarse][:NEAR]
    scores += score(_only(directions, near), *some)
    return _only(directions, _ranked(scores, choose, len(directions), FINE))


def _ranked(
    scores: Sequence[Score], choose: Callable[[Sequence[Score]], Score], positions: int, most: int
) -> list[tuple[int, int]]:
    """Places (token from 0 on, layer) of the best score, of the best without it, and so on."""
    left = list(scores)
    ranked: list[tuple[int, int]] = []
    while left and len(ranked) < most:
        best = choose(left)
        left.remove(best)
        ranked.append((best.position + positions, best.layer))
    return ranked


def _apart(one: tuple[int, int], other: tuple[int, int]) -> int:
    """Layers between two places of one token; more than any where the tokens differ."""
    return abs(one[1] - other[1]) if one[0] == other[0] else sys.maxsize


def _spread(rows: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the rows, evenly spread."""
    count = min(most, len(rows))
    return [rows[(2 * index + 1) * len(rows) // (2 * count)] for index in range(count)]


def _only(directions: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
    """Directions (P, L, D), 0 at all places but some."""
    kept = torch.zeros_like(directions)
    for place in places:
        kept[place] = directions[place]
    return kept
