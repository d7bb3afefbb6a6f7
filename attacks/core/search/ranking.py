"""Ranking what a search found by something that it did not minimise."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.core.search.evaluate import Evaluator


class Ranking:
    """Orders fillings by a second loss, each evaluated once."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._known: dict[tuple[int, ...], float] = {}

    def order(self, candidates: Tensor) -> Tensor:
        """(N, S) `candidates`, lowest second loss first; ties keep their order."""
        rows = [tuple(row) for row in candidates.tolist()]
        new = [index for index, row in enumerate(rows) if row not in self._known]
        if new:
            losses = self._evaluator.losses(candidates[new]).tolist()
            self._known |= {rows[index]: loss for index, loss in zip(new, losses, strict=True)}
        scores = torch.tensor([self._known[row] for row in rows])
        return candidates[scores.argsort(stable=True)]
