"""Gradient steps as values: what goes in comes out anew, so that a search can stop and go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from attacks.core.state import State

#: Of Adam (arXiv 1412.6980): decay of the two means, and what keeps the division finite.
_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True, eq=False)
class Moments:
    """Adam's running means of a gradient and of its square, both of the gradient's shape."""

    first: Tensor
    second: Tensor
    count: int = 0

    @classmethod
    def zero(cls, like: Tensor) -> Moments:
        """Before the first gradient."""
        return cls(torch.zeros_like(like), torch.zeros_like(like))

    def after(self, gradient: Tensor) -> Moments:
        """With one more gradient taken in."""
        return Moments(
            _FIRST * self.first + (1 - _FIRST) * gradient,
            _SECOND * self.second + (1 - _SECOND) * gradient.square(),
            self.count + 1,
        )

    def direction(self) -> Tensor:
        """Where Adam goes, to be multiplied by minus the learning rate."""
        first = self.first / (1 - _FIRST**self.count)
        second = self.second / (1 - _SECOND**self.count)
        return first / (second.sqrt() + _EPSILON)

    def state(self) -> State:
        """For a checkpoint."""
        return {"first": self.first, "second": self.second, "count": self.count}

    @classmethod
    def restore(cls, state: State) -> Moments:
        """From a checkpoint."""
        first, second = state["first"], state["second"]
        assert isinstance(first, Tensor) and isinstance(second, Tensor)
        return cls(first, second, int(state["count"]))


def clip_rows(gradient: Tensor, most: float) -> Tensor:
    """Rows (S, V) scaled down to an L2 norm of at most `most`."""
    norms = gradient.norm(dim=1, keepdim=True)
    clipped: Tensor = gradient * (most / norms.clamp_min(1e-12)).clamp_max(1)
    return clipped
