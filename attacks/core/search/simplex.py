"""Projections of rows of weights over the vocabulary: onto the simplex, and towards its corners."""

from __future__ import annotations

import torch
from torch import Tensor


def project_simplex(weights: Tensor, allowed: Tensor) -> Tensor:
    """The nearest rows (S, V) that are >= 0, sum to 1 and are 0 outside `allowed`, by sorting.

    The Euclidean projection of every row (arXiv 2402.09154, algorithm 2). The authors' code only
    clamps and rescales rows whose positive entries sum to less than 1.

    Args:
        weights: (S, V) float32.
        allowed: (V,) or (S, V) true where a row may have weight; at least once in each.
    """
    inside = weights.masked_fill(~allowed, float("-inf"))
    ordered = inside.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - 1
    counts = torch.arange(1, weights.shape[1] + 1, device=weights.device)
    # Not a number, and so not counted, where what is not allowed begins.
    support = (ordered - excess / counts > 0).sum(1, keepdim=True)
    shift = excess.gather(1, support - 1) / support
    return (inside - shift).clamp_min(0)


def gini(weights: Tensor) -> Tensor:
    """(S,) Gini index 1 - sum w^2 of rows (S, V) on the simplex: 0 at its corners.

    The Tsallis entropy with q = 2.
    """
    return 1 - weights.square().sum(1)


def sharpen(weights: Tensor, factor: float) -> Tensor:
    """Rows (S, V) on the simplex, nudged towards its corners (arXiv 2402.09154, algorithm 3).

    With d entries in its support, a row whose Gini index is above (1 - factor) (d - 1) / d is
    pushed away from the centre of that support until it has just that index, and projected back
    onto the simplex. The way back can only raise the index again, never above where it was; as in
    the authors' code one pass is a nudge and no guarantee. What is 0 stays 0.

    Args:
        weights: (S, V) float32, on the simplex.
        factor: 0 leaves rows as they are, 1 asks for corners.
    """
    support = weights > 0
    size = support.sum(1, keepdim=True).to(weights.dtype)
    offset = weights - support / size
    distance = offset.norm(dim=1, keepdim=True)
    ceiling = (1 - factor) * (size - 1) / size
    radius = (1 - ceiling - 1 / size).clamp_min(0).sqrt()
    # A row at the centre has no direction to go.
    inside = (distance < radius) & (distance > 0)
    scale = torch.where(inside, radius / distance.clamp_min(1e-12), 1.0)
    pushed = weights + (scale - 1) * offset
    return torch.where(inside, project_simplex(pushed, support), weights)
