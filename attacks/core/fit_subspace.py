"""Refusal subspaces fitted by gradient: directions whose ablation makes a model comply.

Refusal direction optimisation (Wollschlaeger et al. 2025, arXiv 2502.17420): instead of a difference in
means, the directions themselves are parameters. Ablated at every residual write, they are to make
the targets of harmful requests likely and to leave the answers to harmless ones as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence

from attacks.core.interventions import AblateSubspace
from attacks.core.sites import Site
from attacks.core.weights import Change

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


@dataclass(frozen=True, eq=False)
class Dialogue:
    """A plain request and an answer to it, in tokens."""

    ids: Tensor
    """(T,) int64"""
    first: int
    """Position of the answer's first token."""

    @classmethod
    def of(cls, model: Model, text: str, answer: str) -> Dialogue:
        """The request `text` with `answer`, as the model's own template writes it."""
        prompt = model.plain(text, target=answer)
        return cls(prompt.sequence, len(prompt.ids))

    @property
    def reads(self) -> range:
        """Positions whose logits predict the answer."""
        return range(self.first - 1, len(self.ids) - 1)


def answer_log_probs(
    model: Model, dialogues: Sequence[Dialogue], changes: Sequence[Change] = ()
) -> list[Tensor]:
    """(G, V) float32 log-probabilities at each answer's tokens, of one batch; differentiable."""
    union = sorted({at for dialogue in dialogues for at in dialogue.reads})
    where = {at: row for row, at in enumerate(union)}
    site = Site(-1, "logits", tuple(union))
    ids = pad_sequence([dialogue.ids for dialogue in dialogues], batch_first=True)
    logits = model.trace(ids, [site], interventions=changes)[site]
    return [
        logits[row, [where[at] for at in dialogue.reads]].float().log_softmax(-1)
        for row, dialogue in enumerate(dialogues)
    ]


def cross_entropy(log_probs: Sequence[Tensor], dialogues: Sequence[Dialogue]) -> Tensor:
    """() mean over dialogues of the mean negative log-probability of the answer's tokens, nats."""
    losses = [
        -rows.gather(1, dialogue.ids[dialogue.first :, None].to(rows.device)).mean()
        for rows, dialogue in zip(log_probs, dialogues, strict=True)
    ]
    return torch.stack(losses).mean()


def divergence(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """() mean over dialogues of the mean KL(before || after) at the answer's tokens, nats."""
    return torch.stack(
        [
            (one.exp() * (one - other)).sum(1).mean()
            for one, other in zip(before, after, strict=True)
        ]
    ).mean()


@dataclass(frozen=True, eq=False)
class Fitted:
    """Orthonormal directions and how the fit went."""

    basis: Tensor
    """(k, D) float32, orthonormal rows."""
    steps: int
    target_loss: float
    """Held-out cross-entropy of the targets once they are ablated, nats a token."""
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
    """Fit `k` orthonormal directions by Adam, and keep the best of the looks at held-out rows.

    The loss is the cross-entropy of the harmful requests' targets plus the KL to the plain model on
    its own answers to harmless ones (arXiv 2502.17420, section 3; equal weights, without its term
    for addition).

    Args:
        model: the model.
        harmful: requests with their targets; a quarter is held out.
        harmless: requests with the model's own answers; a quarter is held out.
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
    raw = raw.to(model.device).requires_grad_()
    (bad, bad_check), (good, good_check) = (_split(rows, rng) for rows in (harmful, harmless))
    optimiser = torch.optim.Adam([raw], lr=RATE)
    best: Fitted | None = None
    worse = 0
    for step in range(steps + 1):
        if step % LOOK == 0 or step == steps:
            seen = _look(model, raw, bad_check, good_check, step, batch)
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
            ablation = [AblateSubspace(orthonormal(raw), model.n_layers)]
            loss = cross_entropy(answer_log_probs(model, drawn[0], ablation), drawn[0])
            loss = loss + divergence(before, answer_log_probs(model, drawn[1], ablation))
            (gradient,) = torch.autograd.grad(loss, [raw])
        raw.grad = gradient
        optimiser.step()
    assert best is not None
    return best


def orthonormal(rows: Tensor) -> Tensor:
    """(k, D) an orthonormal basis of what `rows` (k, D) span, differentiable."""
    basis, triangle = torch.linalg.qr(rows.float().T)
    # The sign that keeps the first row where it points.
    return (basis * triangle.diagonal().sign()).T


def _total(fitted: Fitted) -> float:
    return fitted.target_loss + fitted.kl


@torch.no_grad()
def _look(
    model: Model,
    raw: Tensor,
    bad: Sequence[Dialogue],
    good: Sequence[Dialogue],
    step: int,
    batch: int,
) -> Fitted:
    basis = orthonormal(raw)
    ablation = [AblateSubspace(basis, model.n_layers)]
    loss = kl = 0.0
    for rows in _chunks(bad, batch):
        value = cross_entropy(answer_log_probs(model, rows, ablation), rows)
        loss += float(value) * len(rows) / len(bad)
    for rows in _chunks(good, batch):
        before, after = (answer_log_probs(model, rows, changes) for changes in ((), ablation))
        kl += float(divergence(before, after)) * len(rows) / len(good)
    return Fitted(basis.detach().cpu().clone(), step, loss, kl)


def _chunks(rows: Sequence[Dialogue], size: int) -> list[Sequence[Dialogue]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _split(rows: Sequence[Dialogue], rng: Generator) -> tuple[list[Dialogue], list[Dialogue]]:
    order, held = torch.randperm(len(rows), generator=rng).tolist(), max(1, len(rows) // 4)
    return [rows[i] for i in order[held:]], [rows[i] for i in order[:held]]


def _draw(n: int, batch: int, rng: Generator) -> list[int]:
    found: list[int] = torch.randperm(n, generator=rng)[:batch].tolist()
    return found
