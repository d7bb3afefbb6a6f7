"""Changes to the weights, as values: what becomes of each matrix that writes to the stream.

`attacks.core.model.editing` puts the new matrices in place for some forward passes and takes them
out again; the old ones are never written to, so they come back bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from attacks.core.interventions import Intervention


@dataclass(frozen=True, eq=False)
class Writer:
    """A parameter whose values are added to the residual stream, or are the stream at block 0."""

    name: str
    """Path in the model."""
    layer: int
    """-1 for embeddings, of tokens and of positions."""
    part: Literal["embedding", "attention", "mlp"]
    bias: bool
    gain: Tensor | None
    """(D,) of the norm between this output and the stream, in families that have one there."""

    def read_along(self, directions: Tensor) -> Tensor:
        """Directions (..., D) in the output that become the part along `directions` in the stream.

        Of any length, and no longer orthogonal where a norm lies between.
        """
        return directions if self.gain is None else directions * self.gain.to(directions)


class WeightEdit(ABC):
    """Maps each writer's matrix to a new one; never edits in place."""

    @abstractmethod
    def __call__(self, weight: Tensor, writer: Writer) -> Tensor | None:
        """The new matrix, of the same shape, or None to leave it as it is.

        Args:
            weight: (..., D, K) in at least float32: column k is what input k adds to the stream. A
                bias is one column, an embedding table has one for each token, and the experts of a
                mixture are stacked in front.
            writer: which one it is.
        """


#: What a step may change: activations, or weights.
Change: TypeAlias = Intervention | WeightEdit


def take_out(
    weight: Tensor, direction: Tensor, *, strength: float = 1.0, keep_norms: bool = False
) -> Tensor:
    """W - strength r r^T W for the unit r along `direction` (arXiv 2406.11717, section 2.4).

    So r^T W' = (1 - strength) r^T W. With `keep_norms` the rows are scaled to length one before,
    and to their old lengths after it: a row is what one coordinate of the stream reads from the
    inputs. That keeps the norms and no longer takes the direction out exactly.

    Args:
        weight: (..., D, K)
        direction: (D,) of any norm but 0.
        strength: 0 changes nothing, 1 takes the direction out, 2 reflects.
        keep_norms: keep the lengths of the rows.
    """
    unit = (direction / direction.norm()).to(weight)
    lengths = weight.norm(dim=-1, keepdim=True)
    rows = torch.nn.functional.normalize(weight, dim=-1) if keep_norms else weight
    rows = rows - strength * unit.unsqueeze(-1) * (unit @ rows).unsqueeze(-2)
    new: Tensor = lengths * torch.nn.functional.normalize(rows, dim=-1) if keep_norms else rows
    return new


@dataclass(frozen=True, eq=False)
class Orthogonalise(WeightEdit):
    """W - r r^T W for everything that writes to the stream (arXiv 2406.11717, section 4.1).

    Embeddings and biases included, this equals ablating r at every write. In families that apply a
    norm with gain g to a block's outputs it does not: there W is made orthogonal to g * r, so that
    what reaches the stream has nothing along r either, but what stands across it differs.
    """

    direction: Tensor
    """(D,) of any norm."""

    def __call__(self, weight: Tensor, writer: Writer) -> Tensor:
        return take_out(weight, writer.read_along(self.direction.to(weight)))


@dataclass(frozen=True, eq=False)
class OrthogonaliseSubspace(WeightEdit):
    """W - B^T B W for everything that writes to the stream: `Orthogonalise` for k directions."""

    basis: Tensor
    """(k, D) orthonormal rows."""

    def __call__(self, weight: Tensor, writer: Writer) -> Tensor:
        basis = writer.read_along(self.basis.to(weight))
        if writer.gain is not None:
            basis = torch.linalg.qr(basis.T).Q.T
        return weight - basis.T @ (basis @ weight)


@dataclass(frozen=True, eq=False)
class Abliterate(WeightEdit):
    """Takes a direction out of the output projections, block by block and by degrees.

    The common operation of the tools compared in arXiv 2512.13655; embeddings and biases stay.
    Unlike these tools it goes by what reaches the stream where a norm follows (`Orthogonalise`).
    """

    directions: Tensor
    """(L, D) the direction for each block, of any norm."""
    attention: tuple[float, ...]
    """(L,) strength on the attention's output projection; 0 leaves it as it is."""
    mlp: tuple[float, ...]
    """(L,) strength on the MLP's down projection."""
    keep_norms: bool = False
    """See `take_out`."""

    def __call__(self, weight: Tensor, writer: Writer) -> Tensor | None:
        if writer.part == "embedding" or writer.bias:
            return None
        strength = (self.attention if writer.part == "attention" else self.mlp)[writer.layer]
        if strength == 0:
            return None
        direction = writer.read_along(self.directions[writer.layer].to(weight))
        return take_out(weight, direction, strength=strength, keep_norms=self.keep_norms)
