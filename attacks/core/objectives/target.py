"""Which loss a target attack minimises, by name and number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from attacks.core.errors import BadInput
from attacks.core.objectives.attention import SlotAttention
from attacks.core.objectives.base import Objective
from attacks.core.objectives.logits import (
    TargetCrossEntropy,
    TargetLoss,
    TargetMargin,
    TargetMellowmax,
)

Kind = Literal["cross-entropy", "mellowmax", "mellowmax-logits", "margin"]


@dataclass(frozen=True)
class LossOptions:
    """A target loss and what is added to it; with the defaults it is GCG's own."""

    kind: Kind = "cross-entropy"
    """mellowmax: on token losses; mellowmax-logits: on raw logits, as in nanoGCG's code (see
    `TargetMellowmax`); margin: Carlini and Wagner's (see `TargetMargin`)."""
    alpha: float = 1.0
    """Parameter of mellowmax; the larger, the more the worst token counts."""
    margin: float = 1e-3
    """Margin by which a target token has to lead before it is left alone."""
    attention: float = 0.0
    """Weight of `SlotAttention` (AttnGCG: 50 to 100)."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            valid = ", ".join(get_args(Kind))
            raise BadInput(f"unknown target loss '{self.kind}'; valid: {valid}")
        if self.attention < 0:
            raise BadInput(f"attention={self.attention}: must be at least 0")
        self.target()

    def target(self) -> TargetLoss:
        """The loss of the target's tokens.

        Raises:
            BadInput: a number out of range.
        """
        losses: dict[Kind, TargetLoss] = {
            "cross-entropy": TargetCrossEntropy(),
            "mellowmax": TargetMellowmax(self.alpha),
            "mellowmax-logits": TargetMellowmax(self.alpha, on="logits"),
            "margin": TargetMargin(self.margin),
        }
        return losses[self.kind]

    def objective(self) -> Objective:
        """The loss with all that is added to it."""
        target = self.target()
        return target + self.attention * SlotAttention() if self.attention else target
