"""A search from a conversation with slots to strings: what GCG, random search and SSR share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING

from torch import Generator, Tensor

from attacks.core.artefact import Artefact
from attacks.core.behavior import Behavior
from attacks.core.objectives import Objective, TargetCrossEntropy, TargetLoss, TargetMismatch
from attacks.core.prompt import Messages, Prompt, suffixed
from attacks.core.search.coordinate import CoordinateSearch, Losses, Screen, everything
from attacks.core.search.evaluate import Evaluator
from attacks.core.search.ranking import Ranking
from attacks.core.search.screening import ProbeSampling
from attacks.core.search.staged import CEILING, Staged

if TYPE_CHECKING:
    from attacks.core.model import Model
    from attacks.core.state import State


#: In a checkpoint: that the second stage was begun without the first one's end.
_HANDED_OVER = "handed_over"


@dataclass(frozen=True)
class Pursuit:
    """What a search minimises."""

    objective: Objective
    """The loss, to be bound to the prompt."""
    target: str
    """What the answer should begin with, for objectives that read it."""
    then: Objective | None = None
    """What is minimised once `objective` is at most `enough` (see `Staged`)."""
    enough: float = 0.0
    """Loss at which `objective` counts as reached."""
    within: int | None = None
    """Steps after which `then` is minimised although no filling has brought `objective` so low."""
    rank: Objective | None = None
    """The candidates kept are handed over in the order of this loss, whatever was searched for."""
    drafted: TargetLoss = field(default_factory=TargetCrossEntropy)
    """What a draft model is asked for (see `ProbeSampling`)."""
    source: str = ""
    """Where the target is from, in words for the record, if there is a choice."""
    sure: Callable[[Messages], bool] | None = None
    """Whether the search may end for a low loss with these; None: it may. A model that says what is
    minimised may go on to a refusal."""


@dataclass(frozen=True)
class Suffixed:
    """The conversations found so far, best first, the lowest loss, and the checkpoint."""

    prompts: tuple[Messages, ...]
    loss: float
    state: State
    source: str = ""
    """`Pursuit.source`, and whether the objective was out of reach."""


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
    asked: Messages | None = None,
    draft: ProbeSampling | None = None,
) -> Iterator[Suffixed]:
    """Search `slots` tokens after the behaviour's text, or the slots of `asked`.

    Args:
        model: the model under attack.
        behavior: what is asked for.
        pursuit: what is minimised.
        search: numbers of the search.
        slots: S.
        artefact: what the objectives read.
        rng: draws the first filling and all candidates.
        state: checkpoint to go on from.
        asked: the conversation with its slots, where it is not the text with a suffix.
        draft: chooses which candidates are evaluated; none, or one without a model: all are.

    Yields:
        What is found, after each step.
    """
    if asked is None:
        asked = suffixed(behavior, slots, system=model.system)
    prompt = model.prompt(asked, target=pursuit.target, rng=rng)

    def evaluator(objective: Objective) -> Evaluator:
        return Evaluator(model, prompt, objective.bind(model, prompt, artefact))

    losses: Losses = evaluator(pursuit.objective)
    if pursuit.then is not None:
        handed_over = bool(state and state.get(_HANDED_OVER))
        losses = Staged(losses, evaluator(pursuit.then), pursuit.enough, handed_over)
    ranking = Ranking(evaluator(pursuit.rank)) if pursuit.rank is not None else None
    screen: Screen = everything
    if draft is not None and draft.model:
        screen = draft.screen(model, prompt, pursuit.target, pursuit.drafted)
    done = partial(matched, evaluator(TargetMismatch())) if search.moves.match else None
    sure = partial(_asked, model, prompt, cache(pursuit.sure)) if pursuit.sure else None
    for found in search.run(
        model, prompt, losses, rng=rng, state=state, screen=screen, done=done, sure=sure
    ):
        ids = found.ids if ranking is None else ranking.best_first(found.ids)
        prompts = tuple(model.chat.messages(prompt, ids))
        reached, source = found.state, pursuit.source
        if isinstance(losses, Staged) and pursuit.within is not None:
            late = pursuit.within <= int(found.state["step"]) < search.steps
            losses.handed_over |= late and float(found.losses[0]) > CEILING
            if losses.handed_over:
                reached = {**found.state, _HANDED_OVER: 1}
                said = f"the subspace was not reached within {pursuit.within} steps"
                source = f"{source}; {said}" if source else said
        yield Suffixed(prompts, float(found.losses[0]), reached, source)


def _asked(model: Model, prompt: Prompt, sure: Callable[[Messages], bool], filling: Tensor) -> bool:
    """What `Pursuit.sure` says of the conversation with `filling` (S,) in its slots."""
    return sure(model.chat.messages(prompt, filling.unsqueeze(0))[0])


def matched(mismatch: Losses, filling: Tensor) -> bool:
    """Whether greedy decoding says the target after `filling` (S,), by `TargetMismatch`."""
    return float(mismatch.losses(filling.unsqueeze(0))[0]) == 0
