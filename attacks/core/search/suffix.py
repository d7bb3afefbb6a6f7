"""A suffix search from behaviour to strings: what GCG, random search and SSR have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Generator

from attacks.core.artefact import Artefact
from attacks.core.behavior import Behavior
from attacks.core.objectives import Objective
from attacks.core.prompt import Messages, suffixed
from attacks.core.search.coordinate import CoordinateSearch, Losses
from attacks.core.search.evaluate import Evaluator
from attacks.core.search.ranking import Ranking
from attacks.core.search.staged import Staged

if TYPE_CHECKING:
    from attacks.attack import State
    from attacks.core.model import Model


@dataclass(frozen=True)
class Pursuit:
    """What a search minimises."""

    objective: Objective
    target: str
    """What the answer should begin with, for objectives that read it."""
    then: Objective | None = None
    """What is minimised once `objective` is at most `enough` (see `Staged`)."""
    enough: float = 0.0
    rank: Objective | None = None
    """The candidates kept are handed over in the order of this loss, whatever was searched for."""


@dataclass(frozen=True)
class Suffixed:
    """The conversations found so far, best first, the lowest loss, and the checkpoint."""

    prompts: tuple[Messages, ...]
    loss: float
    state: State


def search_suffix(
    model: Model,
    behavior: Behavior,
    pursuit: Pursuit,
    search: CoordinateSearch,
    *,
    slots: int,
    artefact: Artefact,
    rng: Generator,
    state: State | None = None,
) -> Iterator[Suffixed]:
    """Search `slots` tokens after the behaviour's text.

    Args:
        model: the model under attack.
        behavior: what is asked for.
        pursuit: what is minimised.
        search: numbers of the search.
        slots: S.
        artefact: what the objectives read.
        rng: draws the first filling and all candidates.
        state: checkpoint to go on from.

    Yields:
        What is found, after each step.
    """
    asked = suffixed(behavior, slots, system=model.system)
    prompt = model.prompt(asked, target=pursuit.target, rng=rng)

    def evaluator(objective: Objective) -> Evaluator:
        return Evaluator(model, prompt, objective.bind(model, prompt, artefact))

    losses: Losses = evaluator(pursuit.objective)
    if pursuit.then is not None:
        losses = Staged(losses, evaluator(pursuit.then), pursuit.enough)
    ranking = Ranking(evaluator(pursuit.rank)) if pursuit.rank is not None else None
    for found in search.run(model, prompt, losses, rng=rng, state=state):
        ids = found.ids if ranking is None else ranking.best_first(found.ids)
        prompts = tuple(model.chat.messages(prompt, ids))
        yield Suffixed(prompts, float(found.losses[0]), found.state)
