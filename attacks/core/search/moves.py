"""How a coordinate search picks its candidates: the changes of GCG's successors, each a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from attacks.core.errors import BadInput

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class Moves:
    """Options of a step's candidates; with the defaults it is GCG's own step."""

    momentum: float = 0.0
    """Weight of earlier steps' gradients in the ranking of tokens: m <- momentum * m + (1 -
    momentum) * g, with each slot's gradient made a unit vector (MAC, arXiv 2405.01229, whose code
    has 0.4)."""
    distance: float = 0.0
    """Weight of |E_j - E_i| in the score for replacing token i by token j, added to the slot's unit
    gradient: the linearised loss says little about distant tokens (Faster-GCG, arXiv 2410.15362,
    section 3.1)."""
    draw: Literal["sampled", "ranked"] = "sampled"
    """sampled: slots and tokens at random among the best. ranked: deterministic, slot after slot,
    the best token of each first (Faster-GCG)."""
    fresh: bool = False
    """No filling is evaluated twice in the whole search (Faster-GCG skips suffixes already
    visited)."""
    merge: int = 0
    """Above 1: the changes of that many of a step's best candidates are merged one after the other,
    and the merged fillings compete too (I-GCG, arXiv 2405.21018, with 7)."""
    match: bool = False
    """The search stops once each token of the target is the model's most likely one after those
    before it, so that a greedy answer begins with the target. No judge is consulted."""
    starts: int = 1
    """Above 1: that many random fillings are evaluated as the first step, and the search continues
    from the best of them."""
    first: int = 0
    """Above 0: the first step draws this many candidates, and each further one twice as many as the
    one before, up to the search's width: a search that ends early has evaluated few."""

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise BadInput(f"momentum={self.momentum}: must be at least 0 and less than 1")
        if self.starts < 1:
            raise BadInput(f"starts={self.starts}: must be at least 1")
        for name in ("distance", "merge", "first"):
            if getattr(self, name) < 0:
                raise BadInput(f"{name}={getattr(self, name)}: must be at least 0")
        if self.draw not in ("sampled", "ranked"):
            raise BadInput(f"draw='{self.draw}'; valid: sampled, ranked")

    def width(self, step: int, width: int) -> int:
        """Candidates drawn once `step` steps are done, of `width` at most."""
        grown = step - (self.starts > 1)
        return min(width, self.first << min(grown, 30)) if self.first else width

    def guide(
        self, gradient: Tensor, average: Tensor | None, current: Tensor, model: Model
    ) -> tuple[Tensor, Tensor | None]:
        """(S, V) by which tokens are ranked, lowest best, and the average to go on with.

        Args:
            gradient: (S, V) of this step with respect to one-hot tokens.
            average: (S, V) of the steps before; None at the first, and without momentum.
            current: (S,) the tokens there now.
            model: gives the embeddings.
        """
        if self.momentum:
            gradient = average = smoothed(gradient, average, self.momentum)
        if self.distance:
            gradient = regularised(gradient, current, model.embedding_table, self.distance)
        return gradient, average


def unit_rows(gradient: Tensor) -> Tensor:
    """(S, V) with each slot's gradient of length 1, or left 0."""
    lengths: Tensor = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    return gradient / lengths.clamp_min(1e-12)


def smoothed(gradient: Tensor, average: Tensor | None, momentum: float) -> Tensor:
    """(S, V) moving average of unit gradients once `gradient` (S, V) is in it; None: the first."""
    unit = unit_rows(gradient.float())
    if average is None:
        return unit
    return momentum * average.to(unit.device) + (1 - momentum) * unit


def regularised(gradient: Tensor, current: Tensor, table: Tensor, weight: float) -> Tensor:
    """(S, V) unit gradients plus `weight` times how far each token is from the one there now.

    Args:
        gradient: (S, V) of the loss with respect to one-hot tokens.
        current: (S,) the tokens there now.
        table: (V, D) embeddings.
        weight: of the Euclidean distances.
    """
    here = table[current.to(table.device)].float()
    return unit_rows(gradient.float()) + weight * torch.cdist(here, table.float())


def merged(current: Tensor, best: Tensor) -> Tensor:
    """(K - 1, S) the changes of `best` (K, S) against `current` (S,), put together one by one.

    Row j holds the changes of the best j + 2; where two change the same slot the later one counts,
    as in the authors' code. The first alone is a candidate already.
    """
    rows, filling = [], current
    for other in best:
        filling = torch.where(other != current, other, filling)
        rows.append(filling)
    return torch.stack(rows)[1:] if rows else best


class Seen:
    """Fillings evaluated so far (N, S), and which of others are new."""

    def __init__(self, ids: Tensor) -> None:
        """Start with those of `ids` (N, S)."""
        self.ids = ids
        self._rows = {tuple(row) for row in ids.tolist()}

    def new(self, candidates: Tensor) -> Tensor:
        """(B,) true for candidates (B, S) not seen yet, the first of equal ones only."""
        rows = [tuple(row) for row in candidates.tolist()]
        first = {row: at for at, row in reversed(list(enumerate(rows)))}
        return torch.tensor(
            [row not in self._rows and first[row] == at for at, row in enumerate(rows)],
            dtype=torch.bool,
        )

    def add(self, candidates: Tensor) -> None:
        """Take in candidates (B, S)."""
        self.ids = torch.cat([self.ids, candidates])
        self._rows.update(tuple(row) for row in candidates.tolist())
