"""Objectives that a search can minimise; they compose: `a + 0.5 * b`."""

from attacks.core.objectives.activations import ProbeLoss, SteeringLoss
from attacks.core.objectives.attention import AttentionLoss
from attacks.core.objectives.base import Bound, Objective, Sum
from attacks.core.objectives.logits import TargetCrossEntropy

__all__ = [
    "AttentionLoss",
    "Bound",
    "Objective",
    "ProbeLoss",
    "SteeringLoss",
    "Sum",
    "TargetCrossEntropy",
]
