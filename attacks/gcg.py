"""Greedy coordinate gradient: a suffix that makes an affirmative answer likely."""

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
class GCG(Attack):
    """GCG (Zou et al. 2023, arXiv 2307.15043) with multi-position swaps and a buffer.

    The defaults suit small models and a quick first look, and never step back (buffer=1). The
    published setting is steps=500, width=512, topk=256, slots=20, buffer=0.
    """

    name: ClassVar[str] = "gcg"
    summary: ClassVar[str] = "greedy coordinate gradient: a suffix towards an affirmative answer"
    threat_model: ClassVar[ThreatModel] = ThreatModel.PROMPT

    steps: int = 32
    width: int = 128
    """Candidates drawn in each step."""
    topk: int = 64
    """Tokens of each slot that the gradient puts up for choice."""
    slots: int = 10
    """Length of the suffix in tokens."""
    n_replace: int = 1
    """Tokens changed in each candidate."""
    buffer: int = 1
    """See `CoordinateSearch.buffer`."""

    def run(
        self,
        model: Model,
        behavior: Behavior,
        *,
        artefact: Artefact,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[Step]:
        """One step for each round of gradient, candidates and choice."""
        search = CoordinateSearch(
            self.steps, self.width, self.topk, n_replace=self.n_replace, buffer=self.buffer
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
