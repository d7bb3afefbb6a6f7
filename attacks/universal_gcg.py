"""Universal suffix: one string, found on training behaviours, for every request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor

from attacks.attack import Artefact, Attack, Behavior, State, Step, ThreatModel
from attacks.core.errors import BadInput
from attacks.core.objectives import LossOptions
from attacks.core.search import CoordinateSearch, Moves
from attacks.core.search.universal import goals_for, search_universal

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class UniversalGCG(Attack):
    """GCG over several behaviours, and models, at once (arXiv 2307.15043, algorithm 2).

    The suffix is fitted once for each model and appended to every request unchanged; nothing is
    searched for the single request, so success is on held-out behaviours. The fitting is charged as
    preparation.
    """

    name: ClassVar[str] = "universal-gcg"
    summary: ClassVar[str] = "one suffix for all requests, fitted by GCG on training behaviours"
    threat_model: ClassVar[ThreatModel] = ThreatModel.PROMPT
    needs_train: ClassVar[bool] = True
    searches: ClassVar[bool] = False

    steps: int = 64
    """Steps of the whole fitting."""
    width: int = 128
    """Candidates drawn in each step."""
    topk: int = 64
    """Tokens per slot that the gradient proposes."""
    slots: int = 10
    """Length of the suffix in tokens."""
    buffer: int = 1
    """How many of the best suffixes are kept; 0: move to the best of a step, even if worse."""
    behaviors: int = 8
    """Number of harmful training behaviours, drawn at random; fewer if there are fewer."""
    stage: int = 8
    """Steps after which the next behaviour is added even if the target of an earlier one is not
    matched yet; 0: never, as published."""
    models: tuple[str, ...] = ()
    """Additional models to fit on, with the same tokenizer: folders, Hub ids, or names of folders
    next to that of the model under attack."""
    loss: LossOptions = field(default_factory=LossOptions)
    """Which loss of the target is minimised."""
    moves: Moves = field(default_factory=Moves)
    """How candidates are drawn and merged."""

    def __post_init__(self) -> None:
        if self.behaviors < 1 or self.slots < 1 or self.stage < 0:
            raise BadInput("behaviors and slots must be at least 1, stage at least 0")
        self.search()

    def search(self) -> CoordinateSearch:
        """The numbers of the search."""
        return CoordinateSearch(
            self.steps, self.width, self.topk, buffer=self.buffer, keep=1, moves=self.moves
        )

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Find the suffix; `data` holds it, what it was fitted on, its losses and its cost.

        Raises:
            BadInput: no harmful training behaviours, a further model that does not load or has
                another tokenizer.
        """
        *_, fitted = self.fitting(model, train, rng=rng)
        assert isinstance(fitted, Artefact)
        return fitted

    def fitting(
        self,
        model: Model,
        train: Sequence[Behavior],
        *,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[State | Artefact]:
        """A checkpoint after each step of the search, and what `prepare` returns."""
        harmful = [behavior for behavior in train if behavior.harmful]
        if not harmful:
            raise BadInput(f"{self.name} needs harmful training behaviours")
        order = torch.randperm(len(harmful), generator=rng)[: self.behaviors].tolist()
        chosen = [harmful[at] for at in order]
        models = [model, *(model.companions.get(name) for name in self.models)]
        before = _flops(models)
        objective = self.loss.objective()
        goals = [goals_for(models, behavior, objective, self.slots, rng) for behavior in chosen]
        losses = torch.empty(0, dtype=torch.float64)
        if state is not None:
            # What setting up takes is among the operations so far.
            before = _flops(models) - int(state["flops"])
            losses = _tensor(state, "losses")
        at = state
        for found in search_universal(goals, self.search(), stage=self.stage, rng=rng, state=state):
            losses = torch.cat([losses, torch.tensor([found.loss], dtype=torch.float64)])
            at = {**found.state, "losses": losses, "flops": _flops(models) - before}
            yield at
        assert at is not None
        best = _tensor(at, "best_ids")[:1]
        (messages,) = model.chat.messages(goals[0][0].prompt, best)
        data = {
            "suffix": messages[-1].content.removeprefix(chosen[0].text),
            "behaviors": [behavior.id for behavior in chosen],
            "taken_in": int(at["active"]),
            "losses": losses.tolist(),
            "flops": _flops(models) - before,
        }
        yield Artefact({"suffix_ids": best[0]}, data)

    def run(
        self,
        model: Model,
        behavior: Behavior,
        *,
        artefact: Artefact,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[Step]:
        """One step: the request with the suffix behind it."""
        yield Step((model.conversation(f"{behavior.text}{artefact.data['suffix']}"),))


def _flops(models: Sequence[Model]) -> int:
    """What all of them have computed so far."""
    return sum(model.meter.snapshot().flops for model in models)


def _tensor(state: State, name: str) -> Tensor:
    value = state[name]
    assert isinstance(value, Tensor)
    return value
