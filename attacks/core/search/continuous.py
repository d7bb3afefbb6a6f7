"""Descent over the embeddings in the slots, which no tokens need have."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from attacks.core.errors import BadInput
from attacks.core.search.descent import Moments
from attacks.core.search.evaluate import Evaluator

if TYPE_CHECKING:
    from attacks.core.state import State


@dataclass(frozen=True, eq=False)
class SoftFound:
    """The best embeddings (S, D) float32 so far, their loss, and the checkpoint."""

    embeddings: Tensor
    loss: float
    state: State


@dataclass(frozen=True)
class SoftSearch:
    """Unconstrained descent on slot embeddings, for any objective (arXiv 2402.09063, section 3).

    A step takes the loss and its gradient where the search stands, and moves on. What is kept is
    float32 whatever the model's dtype, since small steps would vanish in bfloat16.
    """

    steps: int
    """Of the descent."""
    step_size: float
    """In units of a typical entry of an embedding: the mean norm of the rows of the table over the
    root of their width. Every entry moves by this much with "sign", and by about this with "adam"
    (its learning rate)."""
    optimizer: Literal["sign", "adam"] = "sign"
    """Steps along the sign of the gradient, as published, or by Adam."""
    every: int = 1
    """A result is yielded each time after this many steps, and after the last."""
    early_stop: float | None = None
    """The search ends once a loss is at most this."""

    def __post_init__(self) -> None:
        for name in ("steps", "every"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}={getattr(self, name)}: must be at least 1")
        if not self.step_size > 0:
            raise BadInput(f"step_size={self.step_size}: must be above 0")

    def run(
        self, evaluator: Evaluator, start: Tensor, *, state: State | None = None
    ) -> Iterator[SoftFound]:
        """Descend from the embeddings `start` (S, D), or go on from `state`.

        Raises:
            FloatingPointError: the loss is not a number.
        """
        with evaluator.model.editing(evaluator.interventions):
            rate = self.step_size * typical_entry(evaluator.model.embedding_table)
        at = start.float()
        best, lowest, step, moments = at, float("inf"), 0, Moments.zero(at)
        if state is not None:
            at, best = _tensor(state, "embeddings"), _tensor(state, "best")
            lowest, step = float(state["lowest"]), int(state["step"])
            moments = Moments.restore(state)
        while step < self.steps and not self._reached(lowest):
            loss, gradient = _loss_and_gradient(evaluator, at)
            if loss < lowest:
                best, lowest = at, loss
            moments = moments.after(gradient)
            direction = gradient.sign() if self.optimizer == "sign" else moments.direction()
            at = at - rate * direction
            step += 1
            if step % self.every == 0 or step == self.steps or self._reached(lowest):
                numbers = {"lowest": lowest, "step": step}
                found = {"embeddings": at, "best": best, **numbers, **moments.state()}
                yield SoftFound(best, lowest, found)

    def _reached(self, loss: float) -> bool:
        return self.early_stop is not None and loss <= self.early_stop


def typical_entry(table: Tensor) -> float:
    """Mean norm of the rows (V, D) over the root of D: how large an entry of an embedding is."""
    return float(table.norm(dim=1).double().mean() / math.sqrt(table.shape[1]))


def _loss_and_gradient(evaluator: Evaluator, embeddings: Tensor) -> tuple[float, Tensor]:
    """The loss at `embeddings` (S, D), and its gradient of the same shape."""
    loss, gradient = evaluator.model.gradient(
        lambda rows: evaluator.soft_losses(rows.unsqueeze(0))[0], embeddings
    )
    if not torch.isfinite(loss) or torch.isnan(gradient).any():
        raise FloatingPointError("the loss or its gradient is not a number (NaN)")
    return float(loss), gradient


def _tensor(state: State, name: str) -> Tensor:
    value = state[name]
    assert isinstance(value, Tensor)
    return value
