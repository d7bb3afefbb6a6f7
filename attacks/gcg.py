"""Greedy coordinate gradient: a suffix that makes an affirmative answer likely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from attacks.attack import Artefact, Behavior, Pursuit, SuffixAttack
from attacks.core.objectives import TargetCrossEntropy

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class GCG(SuffixAttack):
    """GCG (Zou et al. 2023, arXiv 2307.15043) with multi-position swaps and a buffer.

    With buffer=1 it never steps back. The published setting is
    steps=500, width=512, topk=256, slots=20, buffer=0.
    """

    name: ClassVar[str] = "gcg"
    summary: ClassVar[str] = "greedy coordinate gradient: a suffix towards an affirmative answer"

    def pursuit(self, model: Model, behavior: Behavior, artefact: Artefact) -> Pursuit:
        """The behaviour's own target."""
        return Pursuit(TargetCrossEntropy(), behavior.affirmative)
