"""Linear algebra on activations (N, D): principal components, subspaces, and angles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import subspace_angles

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pca:
    """The first two principal components."""

    mean: Array
    """(D,)"""
    components: Array
    """(2, D)"""
    explained: Array
    """(2,) shares of the variance."""

    def __call__(self, rows: Array) -> Array:
        """(N, 2) coordinates."""
        coordinates: Array = (rows - self.mean) @ self.components.T
        return coordinates


def fit_pca(high: Array, low: Array) -> Pca:
    """Fitted on both sets of rows, turned so that `high` (N, D) lies right of and above `low`.

    The sign of a component means nothing, so it is chosen for pictures to look alike.
    """
    rows = np.concatenate([high, low])
    mean = rows.mean(0)
    _, values, vectors = np.linalg.svd(rows - mean, full_matrices=False)
    components = vectors[:2]
    towards = (high.mean(0) - low.mean(0)) @ components.T
    components = components * np.where(towards < 0, -1.0, 1.0)[:, None]
    variance = values**2
    return Pca(mean, components, variance[:2] / variance.sum())


def principal_subspace(rows: Array, dimension: int) -> Array:
    """(D, K) top right singular vectors of centred rows; fewer where the rows span fewer."""
    centred = rows - rows.mean(0)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    rank = int((values > 1e-6 * max(values[0], 1e-30)).sum())
    columns: Array = vectors[: min(dimension, rank)].T
    return columns


def angles(first: Array, second: Array) -> Array:
    """(K,) principal angles between the column spaces of (D, K) and (D, K), degrees ascending."""
    found: Array = np.degrees(subspace_angles(first, second))[::-1]
    return found


def chance_angles(width: int, dimension: int, draws: int, rng: np.random.Generator) -> Array:
    """(K,) mean principal angles between two random subspaces of R^width, degrees ascending."""

    def subspace() -> Any:
        return np.linalg.qr(rng.standard_normal((width, dimension)))[0]

    mean: Array = np.mean([angles(subspace(), subspace()) for _ in range(draws)], axis=0)
    return mean
