"""Refusal directions: difference in means at each position and layer, and which of them to use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from attacks.core.errors import BadInput
from attacks.core.interventions import AblateDirection, AddDirection
from attacks.core.prompt import Prompt
from attacks.core.reading.massive import Massive, difference, set_aside, winsorised
from attacks.core.reading.states import Locate, Text, at_last, next_token_log_probs, read, tail
from attacks.core.refusals.choice import (
    DEPTH,
    DirectionScore,
    Purpose,
    choose_direction,
    least_induced,
)
from attacks.core.refusals.openers import refusal_score, refusal_tokens
from attacks.core.refusals.screen_directions import screened
from attacks.core.sites import Site

if TYPE_CHECKING:
    from attacks.core.model import Model


def difference_in_means(
    model: Model, harmful: Sequence[str], harmless: Sequence[str], *, locate: Locate = at_last
) -> Tensor:
    """(P, L, D) mean over harmful minus mean over harmless prompts, at each block's input.

    Accumulated in float64 (arXiv 2406.11717, section 2.3).
    """
    means = [_states(model, texts, locate)[0].double().mean(0) for texts in (harmful, harmless)]
    return (means[0] - means[1]).float()


def direction_at(
    model: Model, harmful: Sequence[str], harmless: Sequence[str], *, layer: int, position: int
) -> Tensor:
    """(D,) difference in means at one block's input and one token, counted from the end.

    Raises:
        BadInput: a layer or token that there is not, or no prompts of a kind.
    """
    if not (harmful and harmless):
        raise BadInput("a refusal direction needs harmful and harmless training behaviours")
    if not 0 <= layer < model.n_layers:
        raise BadInput(f"refusal direction: layer {layer} is not in 0..{model.n_layers - 1}")
    most = tail([model.plain(text) for text in (*harmful, *harmless)])
    if not -most <= position <= -1:
        raise BadInput(
            f"refusal direction: position {position} is not in {-most}..-1, the tokens of the "
            "template after the request"
        )
    directions = difference_in_means(
        model, harmful, harmless, locate=lambda prompt: range(len(prompt.ids))[position:]
    )
    return directions[0, layer]


def _states(model: Model, texts: Sequence[Text], locate: Locate) -> tuple[Tensor, Tensor]:
    """(N, P, L, D) inputs of the blocks and (N, V) log-probabilities of the answer's first token.

    `locate` names the prompt's last token last.
    """
    sites = [Site(layer, "resid_pre") for layer in range(model.n_layers)]
    found = read(model, texts, [*sites, Site(-1, "logits")], locate=locate, share=True)
    states = torch.stack([found[site] for site in sites], dim=2)
    return states, found[Site(-1, "logits")][:, -1].log_softmax(1)


def mean_kl(before: Tensor, after: Tensor) -> float:
    """Mean KL(before || after) in nats of log-probabilities (N, V)."""
    # Normalised again, since single precision leaves sums that make small divergences negative.
    one, other = (rows.double().log_softmax(1) for rows in (before, after))
    return float((one.exp() * (one - other)).sum(1).mean())


def score_directions(
    model: Model,
    directions: Tensor,
    harmful: Sequence[Text],
    harmless: Sequence[Text],
    token_ids: Tensor,
) -> list[DirectionScore]:
    """Score directions (P, L, D) by ablation and addition (arXiv 2406.11717, appendix C).

    Left out are zeros, as at layer 0, where a token of the template is the same in every prompt,
    and at all tokens but the last those of layers that `choose_direction` leaves out.
    """
    before = next_token_log_probs(model, harmless, share=True)
    scores = []
    for at, rows in enumerate(directions):
        for layer, direction in enumerate(rows):
            deep = layer >= DEPTH * model.n_layers
            if (deep and at < len(directions) - 1) or not direction.any():
                continue
            ablation = [AblateDirection(direction, model.n_layers)]
            addition = [AddDirection(direction, layer, 1.0)]
            # Both change each position by itself.
            ablated, added = (
                next_token_log_probs(model, texts, interventions=changes, share=True)
                for texts, changes in (
                    ([*harmful, *harmless], ablation),
                    (harmless, addition),
                )
            )
            odds = refusal_score(ablated[: len(harmful)], token_ids)
            scores.append(
                DirectionScore(
                    at - len(directions),
                    layer,
                    float(odds.mean()),
                    mean_kl(before, ablated[len(harmful) :]),
                    float(refusal_score(added, token_ids).mean()),
                    float(odds.sigmoid().mean()),
                )
            )
    return scores


@dataclass(frozen=True, eq=False)
class RefusalDirection:
    """A direction, where it comes from, and the scores that it was chosen by."""

    direction: Tensor
    """(D,) as long as it was measured."""
    score: DirectionScore
    """The chosen one's."""
    scores: tuple[DirectionScore, ...]
    given_up: tuple[str, ...]
    """Filters that the choice does not pass; see `choose_direction`."""
    token: str
    """Text of the token that it was read at."""
    refused: float
    """Mean refusal score of held-out harmful prompts as they are."""
    answered: float
    """The same of harmless ones."""
    directions: Tensor
    """(P, L, D) all, by position counted from the end and by layer."""
    held_out: tuple[tuple[int, ...], tuple[int, ...]]
    """Indices of the harmful and of the harmless prompts that it was chosen on."""
    massive: tuple[Massive, ...] = ()
    """Massive activations that rule directions, which are left out of the choice for it."""

    @property
    def layer(self) -> int:
        """Block whose input it was read at."""
        return self.score.layer


def find_refusal_direction(
    model: Model,
    harmful: Sequence[str],
    harmless: Sequence[str],
    *,
    rng: Generator,
    max_kl: float = 0.1,
    last_only: bool = False,
    purpose: Purpose = "ablate",
    winsorise: float = 1.0,
) -> RefusalDirection:
    """Directions from three quarters of the prompts, one of them chosen on the rest.

    Harmful prompts that the model does not refuse and harmless ones that it does are left out, by
    the first token's distribution (arXiv 2406.11717, appendix C), unless that leaves none.

    Args:
        model: the model.
        harmful: at least 4 prompts.
        harmless: at least 4.
        rng: splits the prompts.
        max_kl: see `choose_direction`.
        last_only: look at the prompt's last token only, not at all those of the template after the
            request, which takes as many times longer.
        purpose: see `choose_direction`.
        winsorise: see `winsorised`.

    Raises:
        BadInput: fewer than four prompts of a kind.
    """
    if min(len(harmful), len(harmless)) < 4:
        raise BadInput(
            "a refusal direction needs at least 4 harmful and 4 harmless training behaviours, got "
            f"{len(harmful)} and {len(harmless)}"
        )
    asked = [[model.plain(text) for text in texts] for texts in (harmful, harmless)]
    positions = 1 if last_only else tail([prompt for prompts in asked for prompt in prompts])
    bad, good = (_Side.of(model, prompts, positions, rng) for prompts in asked)
    openers = refusal_tokens(bad.log_probs[bad.fit], good.log_probs[good.fit], most=8)
    held_out = (tuple(bad.check.tolist()), tuple(good.check.tolist()))
    bad, good = bad.keep(openers, refused=True), good.keep(openers, refused=False)
    states = [winsorised(side.states[side.fit], winsorise) for side in (bad, good)]
    ids = asked[0][0].ids
    directions, massive = set_aside(model, difference(*states), states, ids, depth=DEPTH)
    refused, answered = (
        float(refusal_score(side.log_probs[side.check], openers).mean()) for side in (bad, good)
    )
    choose = partial(
        choose_direction,
        n_layers=model.n_layers,
        max_kl=max_kl,
        least=least_induced(refused, answered),
        purpose=purpose,
    )
    score = partial(score_directions, model, token_ids=openers)
    held = (bad.held_out, good.held_out)
    worth = screened(
        model, directions, *held, openers, score=score, choose=lambda s: choose(s)[0], depth=DEPTH
    )
    scores = score(worth, *held)
    best, given_up = choose(scores)
    return RefusalDirection(
        directions[best.position, best.layer],
        best,
        tuple(scores),
        given_up,
        model.chat.decode([[int(ids[best.position])]])[0],
        refused,
        answered,
        directions,
        held_out,
        massive,
    )


@dataclass(frozen=True, eq=False)
class _Side:
    """The prompts of one kind, all read once."""

    prompts: Sequence[Prompt]
    states: Tensor
    """(N, P, L, D)"""
    log_probs: Tensor
    """(N, V)"""
    fit: Tensor
    """Indices of those to fit on, ascending."""
    check: Tensor
    """Indices of those to choose on."""

    @classmethod
    def of(cls, model: Model, prompts: Sequence[Prompt], positions: int, rng: Generator) -> _Side:
        def locate(prompt: Prompt) -> range:
            return range(len(prompt.ids) - positions, len(prompt.ids))

        order, held = torch.randperm(len(prompts), generator=rng), max(1, len(prompts) // 4)
        fit, check = order[held:].sort().values, order[:held].sort().values
        return cls(prompts, *_states(model, prompts, locate), fit, check)

    def keep(self, openers: Tensor, *, refused: bool) -> _Side:
        """Only prompts that are refused, or that are not; all where that leaves none."""
        wanted = (refusal_score(self.log_probs, openers) > 0) == refused
        fit, check = (rows[wanted[rows]] for rows in (self.fit, self.check))
        return _Side(
            self.prompts,
            self.states,
            self.log_probs,
            fit if len(fit) else self.fit,
            check if len(check) else self.check,
        )

    @property
    def held_out(self) -> list[Prompt]:
        return [self.prompts[index] for index in self.check.tolist()]
