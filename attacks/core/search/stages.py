"""Losses one after the other under one budget of steps, with restarts: the strong attack's loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor

from attacks.core.prompt import Messages, Prompt
from attacks.core.search.candidates import random_fillings
from attacks.core.search.coordinate import CoordinateSearch, Found, Losses
from attacks.core.search.staged import CEILING

if TYPE_CHECKING:
    from attacks.core.model import Model
    from attacks.core.state import State

_TOP_IDS, _TOP_LOSS, _STAGE, _SINCE = "top_ids", "top_loss", "stage", "since"
#: In a checkpoint: the stage that new starts begin at, after those that were out of reach; and the
#: filling that passed the stage before a closing one.
_FROM, _PASSED = "from", "passed_ids"


#: What becomes of a stage: it goes on, the next one begins, or all begins anew.
Verdict = Literal["on", "passed", "astray"]


@dataclass(frozen=True, eq=False)
class Stage:
    """One loss on the way."""

    prompt: Prompt
    losses: Losses
    judge: Callable[[Found], Verdict]
    """Passed where the best filling so far is good enough for the next stage, or to end with;
    astray where nothing good can come of it."""
    within: int | None = None
    """Steps, those of new starts included, after which it is out of reach: the next one begins, and
    new starts leave it out. None for the last."""
    closing: int | None = None
    """Steps that the last stage takes at most where the one before was passed; nor does it begin
    anew then. What passed is handed over unless the best filling still passes."""
    source: str = ""
    """Where what is aimed at is from, in words for the record."""


@dataclass(frozen=True, eq=False)
class Reached:
    """Where the search stands: conversations best first, and the checkpoint."""

    prompts: tuple[Messages, ...]
    loss: float
    """Of the best filling, with `CEILING` more for each stage that is not passed."""
    state: State
    source: str


def search_stages(
    model: Model,
    stages: Sequence[Callable[[], Stage]],
    search: CoordinateSearch,
    *,
    restart: int,
    rng: Generator,
    state: State | None = None,
) -> Iterator[Reached]:
    """Search stage after stage, each from the best fillings of the one before.

    A stage is made when it is reached, and whether one is passed is asked when the next step is: a
    search that is stopped has paid for neither. Where more than `restart` steps in a row (0: any
    number) bring nothing better, it begins anew at the first stage that is not out of reach
    (`Stage.within`), with random fillings. What is handed over is that of the newest start; of all
    starts, once the steps are used up. In a stage that is `closing` nothing is lost again.

    Args:
        model: the model under attack.
        stages: make the stages, which differ in the target of their prompts at most.
        search: numbers; all stages together take `search.steps`.
        restart: steps without improvement.
        rng: draws starts and candidates.
        state: checkpoint to go on from.

    Yields:
        What is found, after each step; the search ends once the last stage is passed.
    """
    made = cache(lambda number: stages[number]())
    first = made(0)
    run = found = top = passed = None
    stage = since = start = 0
    if state is not None:
        stage, since, start = (int(state[name]) for name in (_STAGE, _SINCE, _FROM))
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        rng.set_state(tensors["generator"])
        found = Found(tensors["best_ids"], tensors["best_losses"], state)
        top, passed = (float(state[_TOP_LOSS]), tensors[_TOP_IDS]), tensors.get(_PASSED)

    def stuck(found: Found) -> bool:
        return bool(restart) and int(found.state["stale"]) > restart

    def ends(found: Found) -> bool:
        step = int(found.state["step"])
        if step >= search.steps or passed is None:
            return step >= search.steps
        return stuck(found) or step - since >= (made(stage).closing or 0)

    while True:
        begin, step = None, int(found.state["step"]) if found else 0
        before, now = stage, made(stage)
        if found is not None:
            if ends(found):
                return
            verdict = now.judge(found)
            late = now.within is not None and step - since >= now.within
            if verdict == "passed" or late:
                if stage + 1 == len(stages):
                    return
                stage, begin = stage + 1, found.ids
                if verdict != "passed":
                    start = stage
                elif made(stage).closing is not None:
                    passed = found.ids[:1]
            elif verdict == "astray" or stuck(found):
                stage, begin = start, _fillings(model, first.prompt, search.moves.starts, rng)
            now = made(stage)
        if stage != before:
            since = step
        if found is None or begin is not None:
            run = search.run(model, now.prompt, now.losses, rng=rng, begin=begin, step=step)
        elif run is None:
            run = search.run(model, now.prompt, now.losses, rng=rng, state=found.state)
        found = next(run, None)
        if found is None:
            return
        behind = CEILING * (len(stages) - 1 - stage)
        loss = behind + min(float(found.losses[0]), CEILING)
        if top is None or loss <= top[0]:
            top = (loss, found.ids[:1])
        ids = found.ids
        if passed is not None or ends(found):
            chosen = top[1]
            if passed is not None:
                kept = made(stage - 1).judge(replace(found, ids=chosen)) == "passed"
                chosen = chosen if kept else passed
            ids = torch.cat([chosen, ids[(ids != chosen).any(1)]])
        where: State = {_STAGE: stage, _SINCE: since, _FROM: start}
        safe = {} if passed is None else {_PASSED: passed}
        best: State = {_TOP_IDS: top[1], _TOP_LOSS: top[0], **safe}
        found = Found(found.ids, found.losses, {**found.state, **where, **best})
        prompts = tuple(model.chat.messages(now.prompt, ids))
        yield Reached(prompts, loss, found.state, now.source)


def _fillings(model: Model, prompt: Prompt, count: int, rng: Generator) -> Tensor:
    """Up to `count` random fillings that survive, or the prompt's own."""
    drawn = random_fillings(model.chat.allowed, prompt.n_slots, count, rng)
    kept = drawn[model.chat.survives(prompt, drawn)]
    return kept if len(kept) else prompt.slot_ids.unsqueeze(0)
