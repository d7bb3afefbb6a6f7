"""Linear probes: is this activation that of a harmful or of a harmless prompt?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Generator, Tensor
from torch.nn.functional import softplus

#: Penalties that are tried: on the squared norm of the weights of standardised features.
PENALTIES = (1e-2, 1e-1, 1.0, 10.0)
#: Parts of the rows, each of which is scored by a probe fitted on the others.
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Probe:
    """P(harmless) = sigmoid(weight . x + bias), and its accuracy on held-out rows."""

    weight: Tensor
    """(D,) float32"""
    bias: Tensor
    """() float32"""
    accuracy: float
    """Share of rows on the right side, each by a probe fitted without it."""
    log_loss: float
    """Mean negative log-likelihood of the labels of these rows, nats; log 2 for a probe that knows
    nothing. It still tells probes apart where all are right."""
    penalty: float
    """The one of those tried with the lowest `log_loss`: so probabilities are calibrated."""


def fit_probe(
    harmful: Tensor,
    harmless: Tensor,
    *,
    rng: Generator,
    penalties: Sequence[float] = PENALTIES,
) -> Probe:
    """Logistic regression on all rows, label 1 for harmless, its penalty by cross-validation.

    Args:
        harmful: (N, D) activations, N at least 2.
        harmless: (M, D) activations, M at least 2.
        rng: draws the folds, each with its share of both classes.
        penalties: tried in turn.
    """
    states = torch.cat([harmful, harmless]).double()
    labels = torch.cat([torch.zeros(len(harmful)), torch.ones(len(harmless))]).double()
    folds = torch.cat(
        [torch.rand(n, generator=rng).argsort() % FOLDS for n in (len(harmful), len(harmless))]
    )
    signs = 2 * labels - 1
    # With fewer rows of a class than folds, some folds are without it, and the others hold both.
    used = [fold for fold in range(FOLDS) if (folds == fold).any()]
    margins = {penalty: torch.zeros_like(labels) for penalty in penalties}
    for fold in used:
        out = folds == fold
        rows = _Rows.of(states[~out], signs[~out])
        for penalty in penalties:
            weight, bias = rows.fit(penalty)
            margins[penalty][out] = (states[out] @ weight + bias) * signs[out]
    losses = {penalty: float(softplus(-found).mean()) for penalty, found in margins.items()}
    best = min(penalties, key=lambda penalty: losses[penalty])
    weight, bias = _Rows.of(states, signs).fit(best)
    accuracy = float((margins[best] > 0).double().mean())
    return Probe(weight.float(), bias.float(), accuracy, losses[best], best)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows to fit on, standardised and turned into the space that they span.

    A penalised fit lies in that space, which is far smaller than the model where rows are few.
    """

    features: np.ndarray
    """(N, R)"""
    back: Tensor
    """(R, D) from weights there to weights of the standardised features."""
    mean: Tensor
    std: Tensor
    signs: np.ndarray

    @classmethod
    def of(cls, states: Tensor, signs: Tensor) -> _Rows:
        mean, std = states.mean(0), states.std(0).clamp_min(1e-6)
        features = (states - mean) / std
        if len(features) < features.shape[1]:
            basis, _ = torch.linalg.qr(features.T)
            return cls((features @ basis).numpy(), basis.T, mean, std, signs.numpy())
        eye = torch.eye(features.shape[1], dtype=features.dtype)
        return cls(features.numpy(), eye, mean, std, signs.numpy())

    def fit(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Weight (D,) and bias () of raw activations."""
        count = len(self.signs)

        def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            margins = self.signs * (self.features @ parameters[:-1] + parameters[-1])
            slopes = -self.signs / (1 + np.exp(np.clip(margins, -500, 500))) / count
            weights = parameters[:-1]
            gradient = np.append(self.features.T @ slopes + penalty * weights, slopes.sum())
            penalised = 0.5 * penalty * (weights @ weights)
            return np.logaddexp(0, -margins).mean() + penalised, gradient

        start = np.zeros(self.features.shape[1] + 1)
        fitted = torch.from_numpy(minimize(loss, start, jac=True, method="L-BFGS-B").x)
        weight = (fitted[:-1] @ self.back) / self.std
        return weight, fitted[-1] - weight @ self.mean
