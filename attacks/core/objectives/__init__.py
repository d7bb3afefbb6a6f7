"""Objectives that a search can minimise; they can be combined: `a + 0.5 * b`.

Losses only: no loop (`search`) and no attack's parameters (the attack files).
"""

from attacks.core.objectives.activations import (
    LatentLoss,
    ProbeLoss,
    RefusalProjection,
    SteeringLoss,
    SubspaceNorm,
)
from attacks.core.objectives.attention import AttentionLoss, SlotAttention
from attacks.core.objectives.base import Bound, Objective, Sum
from attacks.core.objectives.logits import (
    RefusalOpeners,
    TargetCrossEntropy,
    TargetLoss,
    TargetMargin,
    TargetMellowmax,
    TargetMismatch,
)
from attacks.core.objectives.target import LossOptions

__all__ = [
    "AttentionLoss",
    "Bound",
    "LatentLoss",
    "LossOptions",
    "Objective",
    "ProbeLoss",
    "RefusalOpeners",
    "RefusalProjection",
    "SlotAttention",
    "SteeringLoss",
    "SubspaceNorm",
    "Sum",
    "TargetCrossEntropy",
    "TargetLoss",
    "TargetMargin",
    "TargetMellowmax",
    "TargetMismatch",
]
