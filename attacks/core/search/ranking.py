"""Putting candidates in another order than that of the loss they were searched by."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.core.search.coordinate import Losses


class Ranking:
    """Orders fillings by a loss of its own, which each filling pays for once."""

    def __init__(self, losses: Losses) -> None:
        """Order by `losses`."""
        self._evaluator = losses
        self._known: dict[tuple[int, ...], float] = {}

    def best_first(self, ids: Tensor) -> Tensor:
        """The fillings (N, S), lowest loss first; ties stay in the order given."""
        rows = [tuple(row) for row in ids.tolist()]
        new = [index for index, row in enumerate(rows) if row not in self._known]
        if new:
            losses = self._evaluator.losses(ids[new]).tolist()
            self._known |= {rows[index]: loss for index, loss in zip(new, losses, strict=True)}
        order = sorted(range(len(rows)), key=lambda index: self._known[rows[index]])
        return ids[torch.tensor(order)]
