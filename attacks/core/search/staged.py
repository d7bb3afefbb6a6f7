"""Two losses one after the other: first into a subspace, then towards an answer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attacks.core.search.coordinate import Losses

#: Losses of the second stage are cut off here, so that any filling that has passed the first stage
#: is better than any that has not.
CEILING = 20.0


@dataclass(eq=False)
class Staged:
    """An evaluator that goes by `first` until it is at most `enough`, and by `second` from there.

    Losses are CEILING + first - enough in the first stage and min(second, CEILING) in the second.
    The second loss, usually the dearer one, is computed only for fillings that have passed. Once
    it is `handed_over`, where the first stage is out of reach, all count as passed.
    """

    first: Losses
    second: Losses
    enough: float
    handed_over: bool = False

    def losses(self, candidates: Tensor, k: int | None = None) -> Tensor:
        """(B,) float32 losses of the fillings (B, S), on the CPU; `k` is for the second stage."""
        if self.handed_over:
            return self.second.losses(candidates, k).clamp_max(CEILING)
        losses = CEILING + self.first.losses(candidates) - self.enough
        passed = losses <= CEILING
        if passed.any():
            losses[passed] = self.second.losses(candidates[passed], k).clamp_max(CEILING)
        return losses

    def gradient(self, candidate: Tensor) -> tuple[Tensor, float]:
        """Gradient (S, V) at `candidate` (S,) and its loss: of `first`, then of the sum of both."""
        if self.handed_over:
            return self.second.gradient(candidate)
        gradient, loss = self.first.gradient(candidate)
        if loss > self.enough:
            return gradient, CEILING + loss - self.enough
        onward, later = self.second.gradient(candidate)
        # Both, so that what is proposed does not fall back into the first stage.
        return gradient + onward, later
