"""Objectives that a search can minimise; they compose: `a + 0.5 * b`."""

from attacks.core.objectives.activations import ProbeLoss
from attacks.core.objectives.base import Bound, Objective, Sum
from attacks.core.objectives.logits import TargetCrossEntropy

__all__ = ["Bound", "Objective", "ProbeLoss", "Sum", "TargetCrossEntropy"]
