"""Fits by gradient: directions whose ablation, or a vector whose addition, makes a model comply.

Refusal direction optimisation (Wollschlaeger et al. 2025, arXiv 2502.17420): instead of a
difference in means, the directions themselves are parameters. What is done with them is to make the
targets of harmful requests likely and to leave the answers to harmless ones as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from attacks.core.interventions import AblateSubspace, Intervention
from attacks.core.reading.dialogues import Dialogue, answer_log_probs, cross_entropy, divergence

if TYPE_CHECKING:
    from attacks.core.model import Model

#: Adam's step, on vectors of length one.
RATE = 0.02
#: Training stops when this many looks at held-out prompts in a row find nothing better.
PATIENCE = 2
#: Steps from one look to the next, and what counts as better, in nats.
LOOK, BETTER = 20, 0.005
#: Held-out losses as low as these end the training: there is nothing left to gain.
ENOUGH = 0.02


#: What is done to the model with the parameters as they are.
Use = Callable[[Tensor], Sequence[Intervention]]


@dataclass(frozen=True, eq=False)
class Fitted:
    """Directions, or a vector, and how the fit went."""

    value: Tensor
    """(k, D) float32: orthonormal rows of a subspace; (1, D) for a vector to add."""
    steps: int
    target_loss: float
    """Held-out cross-entropy of the targets once it is used, nats a token."""
    kl: float
    """Held-out KL on harmless answers, nats a token."""


def fit_subspace(
    model: Model,
    harmful: Sequence[Dialogue],
    harmless: Sequence[Dialogue],
    *,
    k: int,
    rng: Generator,
    steps: int,
    batch: int,
    start: Tensor | None = None,
) -> Fitted:
    """Fit `k` orthonormal directions to be ablated; see `fit_by_gradient`.

    Args:
        model: the model.
        harmful: requests with their targets.
        harmless: requests with the model's own answers.
        k: number of directions.
        rng: draws the start, the split and the batches.
        steps: at most.
        batch: dialogues of a kind in each step.
        start: (j, D) directions to begin with, j at most k; the rest is drawn.
    """
    width = model.embedding_table.shape[1]
    raw = torch.nn.functional.normalize(torch.randn((k, width), generator=rng), dim=1)
    if start is not None:
        raw[: len(start)] = torch.nn.functional.normalize(start.float().cpu(), dim=1)
    return fit_by_gradient(
        model,
        harmful,
        harmless,
        start=raw,
        value=orthonormal,
        use=lambda basis: [AblateSubspace(basis, model.n_layers)],
        rng=rng,
        steps=steps,
        batch=batch,
    )


def fit_by_gradient(
    model: Model,
    harmful: Sequence[Dialogue],
    harmless: Sequence[Dialogue],
    *,
    start: Tensor,
    value: Callable[[Tensor], Tensor],
    use: Use,
    rng: Generator,
    steps: int,
    batch: int,
) -> Fitted:
    """Fit the parameters of a change by Adam, and keep the best of the looks at held-out rows.

    The loss is the cross-entropy of the harmful requests' targets plus the KL to the plain model on
    its own answers to harmless ones (arXiv 2502.17420, section 3; equal weights). The paper's term
    for addition is not part of it: what is ablated and what is added are fitted apart.

    Args:
        model: the model.
        harmful: requests with their targets; a quarter is held out.
        harmless: requests with the model's own answers; a quarter is held out.
        start: (k, D) parameters to begin with, rows of length one: `RATE` is measured by these.
        value: the directions or the vector that parameters stand for; differentiable.
        use: the change to the model made with these; gradients flow through it.
        rng: draws the split and the batches.
        steps: at most.
        batch: dialogues of a kind in each step.
    """
    raw = start.to(model.device).requires_grad_()
    (bad, bad_check), (good, good_check) = (_split(rows, rng) for rows in (harmful, harmless))
    optimiser = torch.optim.Adam([raw], lr=RATE)
    best: Fitted | None = None
    worse = 0
    for step in range(steps + 1):
        if step % LOOK == 0 or step == steps:
            seen = _look(model, value(raw.detach()), use, bad_check, good_check, step, batch)
            if best is None or _total(seen) < _total(best) - BETTER:
                best, worse = seen, 0
            else:
                worse += 1
            if worse >= PATIENCE or _total(best) < ENOUGH or step == steps:
                break
        drawn = [[rows[i] for i in _draw(len(rows), batch, rng)] for rows in (bad, good)]
        with torch.no_grad():
            before = answer_log_probs(model, drawn[1])
        with torch.enable_grad():
            changes = use(value(raw))
            loss = cross_entropy(answer_log_probs(model, drawn[0], changes), drawn[0])
            loss = loss + divergence(before, answer_log_probs(model, drawn[1], changes))
            (gradient,) = torch.autograd.grad(loss, [raw])
        raw.grad = gradient
        optimiser.step()
    assert best is not None
    return best


def orthonormal(raw: Tensor) -> Tensor:
    """(k, D) an orthonormal basis of what `raw` (k, D) spans, differentiable."""
    basis, triangle = torch.linalg.qr(raw.float().T)
    # The sign that keeps the first row where it points.
    rows: Tensor = (basis * triangle.diagonal().sign()).T
    return rows


def _total(fitted: Fitted) -> float:
    return fitted.target_loss + fitted.kl


@torch.no_grad()
def _look(
    model: Model,
    value: Tensor,
    use: Use,
    bad: Sequence[Dialogue],
    good: Sequence[Dialogue],
    step: int,
    batch: int,
) -> Fitted:
    changes = use(value)
    loss = kl = 0.0
    for rows in _chunks(bad, batch):
        entropy = cross_entropy(answer_log_probs(model, rows, changes), rows)
        loss += float(entropy) * len(rows) / len(bad)
    for rows in _chunks(good, batch):
        before, after = (answer_log_probs(model, rows, made) for made in ((), changes))
        kl += float(divergence(before, after)) * len(rows) / len(good)
    return Fitted(value.cpu().clone(), step, loss, kl)


def _chunks(rows: Sequence[Dialogue], size: int) -> list[Sequence[Dialogue]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _split(rows: Sequence[Dialogue], rng: Generator) -> tuple[list[Dialogue], list[Dialogue]]:
    order, held = torch.randperm(len(rows), generator=rng).tolist(), max(1, len(rows) // 4)
    return [rows[i] for i in order[held:]], [rows[i] for i in order[:held]]


def _draw(n: int, batch: int, rng: Generator) -> list[int]:
    found: list[int] = torch.randperm(n, generator=rng)[:batch].tolist()
    return found
