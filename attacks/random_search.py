"""The same search without the gradient: what any gradient attack has to beat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Generator

from attacks.attack import Artefact, Attack, Behavior, State, Step, ThreatModel
from attacks.core.objectives import TargetCrossEntropy
from attacks.core.search import CoordinateSearch, search_suffix

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class RandomSearch(Attack):
    """GCG's loss and loop with tokens drawn uniformly from all allowed ones."""

    name: ClassVar[str] = "random-search"
    summary: ClassVar[str] = "GCG's loss and loop without its gradient (control)"
    threat_model: ClassVar[ThreatModel] = ThreatModel.PROMPT

    steps: int = 32
    width: int = 128
    """Candidates drawn in each step."""
    topk: int = 64
    """Not used; accepted so that a suite can set it for every search at once."""
    slots: int = 10
    """Length of the suffix in tokens."""
    n_replace: int = 1
    """Tokens changed in each candidate."""
    buffer: int = 1
    """See `CoordinateSearch.buffer`; without a gradient there is no reason to step back."""

    def run(
        self,
        model: Model,
        behavior: Behavior,
        *,
        artefact: Artefact,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[Step]:
        """One step for each round of candidates and choice."""
        search = CoordinateSearch(
            self.steps,
            self.width,
            self.topk,
            n_replace=self.n_replace,
            buffer=self.buffer,
            use_gradient=False,
        )
        for prompts, loss, reached in search_suffix(
            search,
            TargetCrossEntropy(),
            model,
            behavior,
            slots=self.slots,
            artefact=artefact,
            rng=rng,
            state=state,
        ):
            yield Step(prompts, loss=loss, state=reached)
