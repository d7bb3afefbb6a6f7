"""The refusal direction that does best when it is tried on held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from torch import Generator

from attacks.core.behavior import Behavior
from attacks.core.interventions import AblateDirection
from attacks.core.refusals.choice import DirectionScore, Purpose, choose_direction, least_induced
from attacks.core.refusals.directions import RefusalDirection, find_refusal_direction
from attacks.core.refusals.verdicts import LEFT, Check, Examiner

if TYPE_CHECKING:
    from attacks.core.model import Model

#: Points of the Pareto front that are tried where the filters leave nothing.
_TRIED = 4


class Checked(NamedTuple):
    """A direction, the check of its ablation, and what made it."""

    found: RefusalDirection
    check: Check
    examiner: Examiner


def find_checked_direction(
    model: Model,
    train: Sequence[Behavior],
    *,
    rng: Generator,
    max_kl: float = 0.1,
    last_only: bool = False,
    purpose: Purpose = "ablate",
    winsorise: float = 1.0,
) -> Checked:
    """`find_refusal_direction`, and its check on the prompts that it was chosen on.

    Scores by the first token are a guess at what ablation does to whole answers. Where no direction
    passes all filters, the guess is not relied on: the `_TRIED` points of the Pareto front of
    refusals left and damage with the lowest sum are tried, and the lowest `Check.cost` is taken.
    Where first tokens tell nothing of refusals (they come after small talk, say, or every answer
    opens with a space), the `_TRIED` are directions of the last token, at layers evenly spread.

    Raises:
        BadInput: as `find_refusal_direction`.
    """
    groups = [[row for row in train if row.harmful == flag] for flag in (True, False)]
    found = find_refusal_direction(
        model,
        *([row.text for row in rows] for rows in groups),
        rng=rng,
        max_kl=max_kl,
        last_only=last_only,
        purpose=purpose,
        winsorise=winsorise,
    )
    held_out = [
        rows[at] for rows, chosen in zip(groups, found.held_out, strict=True) for at in chosen
    ]
    examiner = Examiner(model, train, held_out)

    def tried(score: DirectionScore) -> tuple[DirectionScore, Check]:
        direction = found.directions[score.position, score.layer]
        return score, examiner.check([AblateDirection(direction, model.n_layers)])

    if not found.given_up or purpose != "ablate":
        return Checked(found, tried(found.score)[1], examiner)
    if found.refused <= found.answered and examiner.refused_before > LEFT:
        front = _spread(found.scores)
    else:
        front = sorted(_front(found.scores), key=lambda score: score.cost)[:_TRIED]
    best, check = min(map(tried, front), key=lambda pair: pair[1].cost)
    direction = found.directions[best.position, best.layer]
    token = model.chat.decode([[int(model.plain(groups[0][0].text).ids[best.position])]])[0]
    least = least_induced(found.refused, found.answered)
    given_up = choose_direction([best], model.n_layers, max_kl=max_kl, least=least)[1]
    chosen = replace(found, direction=direction, score=best, token=token, given_up=given_up)
    return Checked(chosen, check, examiner)


def _spread(scores: Sequence[DirectionScore]) -> list[DirectionScore]:
    """At most `_TRIED` of the last token that has any, at layers evenly spread."""
    last = max(score.position for score in scores)
    own = sorted((one for one in scores if one.position == last), key=lambda one: one.layer)
    count = min(_TRIED, len(own))
    return [own[(2 * at + 1) * len(own) // (2 * count)] for at in range(count)]


def _front(scores: Sequence[DirectionScore]) -> list[DirectionScore]:
    """Those that no other beats or equals in both refusals left and KL."""
    front: list[DirectionScore] = []
    for score in sorted(scores, key=lambda one: (one.left, one.kl)):
        if not front or score.kl < front[-1].kl:
            front.append(score)
    return front
