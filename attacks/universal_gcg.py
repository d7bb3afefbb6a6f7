"""Universal suffix: one string, found on training behaviours, for every request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator

from attacks.attack import Artefact, Attack, Behavior, State, Step, ThreatModel
from attacks.core.errors import BadInput
from attacks.core.objectives import LossOptions
from attacks.core.search import CoordinateSearch, Moves
from attacks.core.search.universal import Universal, goals_for, search_universal

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class UniversalGCG(Attack):
    """GCG over several behaviours, and models, at once (arXiv 2307.15043, algorithm 2).

    The suffix is fitted once for each model and put behind every request as it stands; nothing is
    searched for the request itself, so success is that on behaviours never seen. The fitting is
    charged as preparation.
    """

    name: ClassVar[str] = "universal-gcg"
    summary: ClassVar[str] = "one suffix for all requests, fitted by GCG on training behaviours"
    threat_model: ClassVar[ThreatModel] = ThreatModel.PROMPT
    needs_train: ClassVar[bool] = True
    searches: ClassVar[bool] = False

    steps: int = 64
    """Of the whole fitting."""
    width: int = 128
    topk: int = 64
    slots: int = 10
    buffer: int = 1
    behaviors: int = 8
    """How many harmful training behaviours, drawn at random; fewer where there are fewer."""
    stage: int = 8
    """Steps after which the next behaviour is taken in although the target of an earlier one is not
    matched yet; 0: never, as published."""
    models: tuple[str, ...] = ()
    """Further models to fit on, of the same tokenizer: folders, Hub ids, or names of folders beside
    that of the model under attack."""
    loss: LossOptions = field(default_factory=LossOptions)
    moves: Moves = field(default_factory=Moves)

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
        harmful = [behavior for behavior in train if behavior.harmful]
        if not harmful:
            raise BadInput(f"{self.name} needs harmful training behaviours")
        order = torch.randperm(len(harmful), generator=rng)[: self.behaviors].tolist()
        chosen = [harmful[at] for at in order]
        models = [model, *(model.companions.get(name) for name in self.models)]
        before = [each.meter.snapshot() for each in models]
        objective = self.loss.objective()
        goals = [goals_for(models, behavior, objective, self.slots, rng) for behavior in chosen]
        found: list[Universal] = list(
            search_universal(goals, self.search(), stage=self.stage, rng=rng)
        )
        last, prompt = found[-1], goals[0][0].prompt
        (messages,) = model.chat.messages(prompt, last.ids.unsqueeze(0))
        work = [each.meter.snapshot() - start for each, start in zip(models, before, strict=True)]
        data = {
            "suffix": messages[-1].content.removeprefix(chosen[0].text),
            "behaviors": [behavior.id for behavior in chosen],
            "taken_in": last.active,
            "losses": [at.loss for at in found],
            "flops": sum(each.flops for each in work),
        }
        return Artefact({"suffix_ids": last.ids}, data)

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
