"""The same search without the gradient: the control that any gradient attack has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from attacks.attack import Artefact, Behavior, Pursuit, SuffixAttack
from attacks.core.objectives import TargetCrossEntropy

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class RandomSearch(SuffixAttack):
    """GCG's loss and loop (arXiv 2307.15043) with tokens drawn uniformly from all allowed ones.

    `topk` is not used; it exists so that a suite can set it for every search at once.
    """

    name: ClassVar[str] = "random-search"
    summary: ClassVar[str] = "GCG's loss and loop without its gradient (control)"
    use_gradient: ClassVar[bool] = False

    def pursuit(self, model: Model, behavior: Behavior, artefact: Artefact) -> Pursuit:
        """The behaviour's own target."""
        return Pursuit(TargetCrossEntropy(), behavior.affirmative)
