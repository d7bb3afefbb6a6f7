"""One filling for several conversations, and for several models that share a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from attacks.core.artefact import EMPTY
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.objectives import Objective, TargetMismatch
from attacks.core.prompt import Prompt, suffixed
from attacks.core.search.coordinate import CoordinateSearch, Losses, Survives
from attacks.core.search.evaluate import Evaluator
from attacks.core.search.moves import unit_rows
from attacks.core.search.suffix import matched

if TYPE_CHECKING:
    from attacks.core.model import Model
    from attacks.core.state import State

_DRAWS, _BATCH = 40, 256


@dataclass(frozen=True, eq=False)
class Joint:
    """An evaluator over several others: the mean of their losses, the sum of their directions."""

    parts: Sequence[Losses]

    def losses(self, candidates: Tensor, k: int | None = None) -> Tensor:
        """(B,) mean losses of the fillings (B, S), on the CPU.

        All of them, whatever `k`: the best in the mean need not be among the best of any part.
        """
        return torch.stack([part.losses(candidates) for part in self.parts]).mean(0)

    def gradient(self, candidate: Tensor) -> tuple[Tensor, float]:
        """(S, V) sum of the gradients, each slot's of length 1, and the mean loss.

        Unit gradients keep one steep prompt from deciding alone (arXiv 2307.15043, algorithm 2).
        """
        found = [part.gradient(candidate) for part in self.parts]
        rows = min(gradient.shape[1] for gradient, _ in found)
        total = torch.stack([unit_rows(g[:, :rows].float().cpu()) for g, _ in found]).sum(0)
        return total, sum(loss for _, loss in found) / len(found)


@dataclass(frozen=True, eq=False)
class Goal:
    """One conversation of one model."""

    model: Model
    prompt: Prompt
    losses: Losses
    mismatch: Losses
    """See `TargetMismatch`."""


@dataclass(frozen=True, eq=False)
class Universal:
    """Where a universal search stands: its best filling (S,) for the behaviours taken in."""

    ids: Tensor
    loss: float
    active: int
    """How many behaviours are taken in."""
    state: State
    """Checkpoint."""


def goals_for(
    models: Sequence[Model], behavior: Behavior, objective: Objective, slots: int, rng: Generator
) -> list[Goal]:
    """A goal for each model: the behaviour's text with `slots` slots after it, and its target.

    Raises:
        BadInput: models with different tokenizers, or a conversation that a template refuses.
    """
    vocabulary = models[0].chat.tokenizer.get_vocab()
    goals = []
    for model in models:
        if model.chat.tokenizer.get_vocab() != vocabulary:
            raise BadInput(
                f"models '{models[0].name}' and '{model.name}' have different tokenizers, so no "
                "gradient over tokens can be shared"
            )
        asked = suffixed(behavior, slots, system=models[0].system)
        prompt = model.prompt(asked, target=behavior.affirmative, rng=rng)
        losses, mismatch = (
            Evaluator(model, prompt, each.bind(model, prompt, EMPTY))
            for each in (objective, TargetMismatch())
        )
        goals.append(Goal(model, prompt, losses, mismatch))
    return goals


def search_universal(
    goals: Sequence[Sequence[Goal]],
    search: CoordinateSearch,
    *,
    stage: int,
    rng: Generator,
    state: State | None = None,
) -> Iterator[Universal]:
    """Search one filling for all goals, taking in behaviour after behaviour.

    A behaviour is taken in once the best filling makes greedy decoding say the targets of all
    before it (arXiv 2307.15043, algorithm 2, with a teacher-forced match for its success check).

    Args:
        goals: for each behaviour, its goal on each model.
        search: its `steps` are those of the whole search.
        stage: steps after which the next behaviour is added regardless; 0: never.
        rng: draws the start and all candidates.
        state: checkpoint to go on from.

    Yields:
        The best filling after each step.

    Raises:
        BadInput: no filling that re-tokenises to itself in every conversation.
    """
    every = [goal for group in goals for goal in group]
    first = every[0]

    def survives(candidates: Tensor) -> Tensor:
        # Of all goals from the start, so that no behaviour taken in later rules the filling out.
        kept = torch.arange(len(candidates))
        for goal in every:
            if len(kept) == 0:
                break
            kept = kept[goal.model.chat.survives(goal.prompt, candidates[kept])]
        return torch.isin(torch.arange(len(candidates)), kept)

    left, active = search.steps, 1
    if state is None:
        filling = _start(first, survives, rng)
    else:
        # Of the start of the stage nothing is asked any more.
        filling = first.prompt.slot_ids
        left, active = int(state["stage_left"]), int(state["active"])
    while left > 0:
        now = [goal for group in goals[:active] for goal in group]
        everyone = active == len(goals)
        mismatch = Joint([goal.mismatch for goal in now])
        steps = min(left, stage) if stage and not everyone else left
        standing = {"stage_left": left, "active": active}
        run = replace(search, steps=steps).run(
            first.model,
            first.prompt.with_slots(filling),
            Joint([goal.losses for goal in now]),
            rng=rng,
            state=state,
            survives=survives,
            done=partial(matched, mismatch) if search.moves.match or not everyone else None,
        )
        if state is not None:
            left, filling, state = left - int(state["step"]), _best(state), None
        for found in run:
            left -= 1
            filling = found.ids[0]
            here = {**found.state, **standing}
            yield Universal(filling, float(found.losses[0]), active, here)
        if everyone:
            return
        active += 1


def _best(state: State) -> Tensor:
    """(S,) the best filling at a checkpoint of a coordinate search."""
    ids = state["best_ids"]
    assert isinstance(ids, Tensor)
    return ids[0]


def _start(goal: Goal, survives: Survives, rng: Generator) -> Tensor:
    """(S,) a filling drawn uniformly from the allowed ids until it survives everywhere."""
    allowed = goal.model.chat.allowed.nonzero().squeeze(1)
    for _ in range(_DRAWS):
        drawn = allowed[torch.randint(len(allowed), (_BATCH, goal.prompt.n_slots), generator=rng)]
        usable = drawn[survives(drawn)]
        if len(usable):
            return usable[0]
    raise BadInput("no filling of the slots re-tokenises to itself in all conversations")
