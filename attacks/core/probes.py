"""Linear probes: is this activation that of a harmful or of a harmless prompt?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Generator, Tensor


@dataclass(frozen=True, eq=False)
class Probe:
    """P(harmless) = sigmoid(weight . x + bias), and its accuracy on rows it was not fitted on."""

    weight: Tensor
    """(D,) float32"""
    bias: Tensor
    """() float32"""
    accuracy: float
    log_loss: float
    """Mean negative log-likelihood of the held-out labels, nats; log 2 for a probe that knows
    nothing. It still tells probes apart where all are right."""


def fit_probe(
    harmful: Tensor, harmless: Tensor, *, rng: Generator, held_out: float = 0.3, l2: float = 1e-2
) -> Probe:
    """Logistic regression, label 1 for harmless, with the share `held_out` kept for the accuracy.

    Args:
        harmful: (N, D) activations.
        harmless: (M, D) activations.
        rng: draws the split.
        held_out: share of each class that is scored and not fitted on.
        l2: penalty on the squared norm of the weights of standardised features.
    """
    states = torch.cat([harmful, harmless]).double()
    labels = torch.cat([torch.zeros(len(harmful)), torch.ones(len(harmless))]).double()
    kept = torch.cat(
        [
            torch.rand(n, generator=rng).argsort().argsort() >= round(held_out * n)
            for n in (len(harmful), len(harmless))
        ]
    )
    mean, std = states[kept].mean(0), states[kept].std(0).clamp_min(1e-6)
    features = ((states - mean) / std).numpy()
    signs = (2 * labels - 1).numpy()
    rows = kept.numpy()

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs[rows] * (features[rows] @ parameters[:-1] + parameters[-1])
        slopes = -signs[rows] / (1 + np.exp(np.clip(margins, -500, 500))) / rows.sum()
        weights = parameters[:-1]
        gradient = np.append(features[rows].T @ slopes + l2 * weights, slopes.sum())
        return np.logaddexp(0, -margins).mean() + 0.5 * l2 * (weights @ weights), gradient

    start = np.zeros(states.shape[1] + 1)
    fitted = torch.from_numpy(minimize(loss, start, jac=True, method="L-BFGS-B").x)
    # Undo the standardisation, so that the probe reads raw activations.
    weight = fitted[:-1] / std
    bias = fitted[-1] - weight @ mean
    margins = ((states @ weight + bias) * (2 * labels - 1))[~kept]
    if not len(margins):
        return Probe(weight.float(), bias.float(), float("nan"), float("nan"))
    log_loss = float(torch.nn.functional.softplus(-margins).mean())
    return Probe(weight.float(), bias.float(), float((margins > 0).double().mean()), log_loss)
