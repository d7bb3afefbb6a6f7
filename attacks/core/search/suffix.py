"""A suffix search from behaviour to strings: what GCG, random search and SSR have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Generator

from attacks.core.artefact import Artefact
from attacks.core.behavior import Behavior
from attacks.core.objectives import Objective
from attacks.core.prompt import Messages, suffixed
from attacks.core.search.coordinate import CoordinateSearch, Losses
from attacks.core.search.evaluate import Evaluator
from attacks.core.search.staged import Staged

if TYPE_CHECKING:
    from attacks.attack import State
    from attacks.core.model import Model


def search_suffix(
    search: CoordinateSearch,
    objective: Objective,
    model: Model,
    behavior: Behavior,
    *,
    slots: int,
    artefact: Artefact,
    rng: Generator,
    state: State | None,
    target: str | None = None,
    then: Objective | None = None,
    enough: float = 0.0,
) -> Iterator[tuple[tuple[Messages, ...], float, State]]:
    """Minimise `objective` over `slots` tokens after the behaviour's text.

    Args:
        search: numbers of the search.
        objective: what is minimised.
        model: the model under attack.
        behavior: what is asked for.
        slots: S.
        artefact: for the objective.
        rng: draws the first filling and all candidates.
        state: checkpoint to go on from.
        target: what the answer should begin with; by default the behaviour's own target.
        then: what is minimised once `objective` is at most `enough` (see `Staged`).
        enough: see `then`.

    Yields:
        After each step the conversations found, best first, the lowest loss, and the checkpoint.
    """
    wanted = behavior.affirmative if target is None else target
    prompt = model.prompt(suffixed(behavior, slots, system=model.system), target=wanted, rng=rng)
    evaluator = Evaluator(model, prompt, objective.bind(model, prompt, artefact))
    losses: Losses = evaluator
    if then is not None:
        second = Evaluator(model, prompt, then.bind(model, prompt, artefact))
        losses = Staged(evaluator, second, enough)
    for found in search.run(model, prompt, losses, rng=rng, state=state):
        conversations = tuple(model.chat.messages(prompt, found.ids))
        yield conversations, float(found.losses[0]), found.state
