"""A suffix search from behaviour to strings: what GCG, random search and SSR have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Generator

from attacks.core.artefact import Artefact
from attacks.core.behavior import Behavior
from attacks.core.objectives import Objective
from attacks.core.prompt import Messages, suffixed
from attacks.core.search.coordinate import CoordinateSearch
from attacks.core.search.evaluate import Evaluator

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
) -> Iterator[tuple[tuple[Messages, ...], float, State]]:
    """Minimise `objective` over `slots` tokens after the behaviour's text.

    Yields:
        After each step the conversations found, best first, the best loss, and the checkpoint.
    """
    prompt = model.prompt(
        suffixed(behavior, slots, system=model.system), target=behavior.affirmative, rng=rng
    )
    evaluator = Evaluator(model, prompt, objective.bind(model, prompt, artefact))
    for found in search.run(evaluator, rng=rng, state=state):
        conversations = tuple(model.chat.messages(prompt, found.ids))
        yield conversations, float(found.losses[0]), found.state
