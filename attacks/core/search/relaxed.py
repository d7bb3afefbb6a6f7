"""Projected gradient descent on tokens relaxed to weights over the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import cos, pi
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from attacks.core.errors import BadInput
from attacks.core.prompt import Prompt
from attacks.core.search.buffer import Buffer
from attacks.core.search.coordinate import Found
from attacks.core.search.descent import Moments, clip_rows
from attacks.core.search.evaluate import Evaluator
from attacks.core.search.simplex import project_simplex, sharpen

if TYPE_CHECKING:
    from attacks.core.model import Model
    from attacks.core.state import State

#: Below this relative gap between discrete and relaxed loss the sharpening is held back.
_GAP = 0.1
#: How often the text of a filling is re-tokenised before it is given up.
_ROUNDS = 3


@dataclass(frozen=True)
class RelaxedSearch:
    """PGD for language models (Geisler et al. 2024, arXiv 2402.09154, algorithm 1).

    Each slot holds weights over the vocabulary, on the simplex. A step follows the gradient through
    the embedding table with Adam, projects back onto the simplex and towards its corners
    (`sharpen`), and reads off the best token of each slot: a filling that survives tokenisation is
    evaluated as tokens, and only those fillings count.

    As in the authors' code the learning rate is constant for `warm_up` steps and then runs through
    cosine cycles of `cycle` steps from `rate` to `peak`, which lies above it; the sharpening grows
    to `sharpness` over `anneal` steps, follows the learning rate, and is held back where relaxed
    and discrete loss are close. Left out are their auxiliary losses, and jumps to fillings of other
    behaviours, which are not searched together here.
    """

    steps: int
    """Gradient steps, each with a discretisation."""
    rate: float
    """Lowest learning rate of Adam."""
    peak: float
    """Highest learning rate, halfway through a cycle."""
    warm_up: int
    """Steps at the lowest learning rate before the first cycle."""
    cycle: int
    """Steps of a cosine cycle of the learning rate."""
    sharpness: float
    """Of the projection towards the corners, 0 to 1."""
    anneal: int
    """Steps over which the sharpness grows to its value."""
    clip: float
    """Largest L2 norm of the gradient of a slot."""
    patience: int
    """After more steps than this without a better filling the weights are set to the best one."""
    keep: int = 10
    """How many of the best fillings are handed over."""
    early_stop: float | None = None
    """The search ends once a filling's loss is at most this."""

    def __post_init__(self) -> None:
        for name in ("steps", "cycle", "anneal", "patience", "keep"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("rate", "peak", "clip"):
            if not getattr(self, name) > 0:
                raise BadInput(f"{name}={getattr(self, name)}: must be above 0")
        if self.warm_up < 0 or not 0 <= self.sharpness <= 1:
            raise BadInput(
                f"warm_up={self.warm_up}, sharpness={self.sharpness}: must be at least 0, and the "
                "latter at most 1"
            )

    def learning_rate(self, step: int) -> float:
        """At step 0, 1, ..."""
        if step < self.warm_up:
            return self.rate
        turn = (step - self.warm_up) % self.cycle / self.cycle
        return self.peak + (self.rate - self.peak) * (1 + cos(pi * turn)) / 2

    def factor(self, step: int, relaxed: float, discrete: float) -> float:
        """The `factor` of `sharpen` at step 0, 1, ... with these losses."""
        gap = min(1.0, max(0.0, (discrete - relaxed) / discrete)) if discrete > 0 else 0.0
        squeezed = gap / (1 - _GAP)
        held = 1.0
        if gap < _GAP:
            held = squeezed**2 / (squeezed**2 + (1 - squeezed) ** 2)
        annealed = self.sharpness * min(1.0, (step + 1) / self.anneal)
        return annealed * held * self.learning_rate(step) / max(self.rate, self.peak)

    def run(
        self,
        model: Model,
        prompt: Prompt,
        evaluator: Evaluator,
        *,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[Found]:
        """Search from weights drawn uniformly from the simplex, or go on from `state`.

        Yields:
            `Found` after each step, over all discrete fillings so far; the prompt's own is the
            first of them.
        """
        allowed = model.chat.allowed.to(model.device)
        if state is None:
            filling = prompt.slot_ids.unsqueeze(0)
            best = Buffer(filling, evaluator.losses(filling), self.keep)
            # Normalised exponential variables are uniform on the simplex.
            drawn = -torch.rand((prompt.n_slots, len(allowed)), generator=rng).log()
            weights = torch.where(allowed, drawn.to(model.device).clamp(1e-6, 1e2), 0.0)
            weights = weights / weights.sum(1, keepdim=True)
            discrete = float(best.losses[0])
            at = _Standing(weights, Moments.zero(weights), best, discrete)
        else:
            at = _restore(state, self.keep, rng)
        while at.step < self.steps and not self._reached(at):
            at = self._after(model, prompt, evaluator, allowed, at)
            yield Found(at.best.ids, at.best.losses, _checkpoint(at, rng))

    def _reached(self, at: _Standing) -> bool:
        return self.early_stop is not None and float(at.best.losses[0]) <= self.early_stop

    def _after(
        self, model: Model, prompt: Prompt, evaluator: Evaluator, allowed: Tensor, at: _Standing
    ) -> _Standing:
        """Where the search stands after one more step."""
        relaxed, gradient = relaxed_gradient(evaluator, at.weights)
        gradient = clip_rows(gradient.masked_fill(~allowed, 0.0), self.clip)
        moments = at.moments.after(gradient)
        moved = at.weights - self.learning_rate(at.step) * moments.direction()
        weights = project_simplex(moved, allowed)
        weights = sharpen(weights, self.factor(at.step, relaxed, at.discrete))
        best, discrete, stale = at.best, at.discrete, at.stale + 1
        filling = surviving(model, prompt, weights.argmax(1).cpu())
        if filling is not None:
            losses = evaluator.losses(filling.unsqueeze(0))
            discrete = float(losses[0])
            best = best.add(filling.unsqueeze(0), losses)
        if best.losses[0] < at.best.losses[0]:
            stale = 0
        if stale > self.patience:
            weights = torch.zeros_like(weights)
            weights.scatter_(1, best.ids[0].to(weights.device).unsqueeze(1), 1.0)
            stale = 0
        return replace(
            at,
            weights=weights,
            moments=moments,
            best=best,
            discrete=discrete,
            stale=stale,
            step=at.step + 1,
        )


@dataclass(frozen=True, eq=False)
class _Standing:
    """All that a search needs to go on, beside the generator."""

    weights: Tensor
    """(S, V) float32 on the simplex."""
    moments: Moments
    best: Buffer
    discrete: float
    """Loss of the last filling that survived."""
    stale: int = 0
    step: int = 0


def relaxed_gradient(evaluator: Evaluator, weights: Tensor) -> tuple[float, Tensor]:
    """The loss of weights (S, V) in the slots, and its gradient of the same shape.

    A slot's embedding is the mean of all embeddings under its weights, rescaled to sum to 1; the
    gradient passes through the rescaling.

    Raises:
        FloatingPointError: the gradient is not a number.
    """
    model = evaluator.model
    with model.editing(evaluator.interventions):
        table = model.embedding_table

        def loss_at(leaf: Tensor) -> Tensor:
            shares = leaf / leaf.sum(1, keepdim=True)
            return evaluator.soft_losses((shares.to(table.dtype) @ table).unsqueeze(0))[0]

        loss, gradient = model.gradient(loss_at, weights)
    model.meter.product(len(weights), *table.shape, backward=True)
    if torch.isnan(gradient).any():
        raise FloatingPointError("the gradient is not a number (NaN)")
    return float(loss), gradient


def surviving(model: Model, prompt: Prompt, filling: Tensor) -> Tensor | None:
    """(S,) the filling, or the one that its text is tokenised to, if it survives; else None.

    A text with more tokens than slots is cut; one with fewer is followed by the last tokens again.
    """
    for _ in range(_ROUNDS):
        if bool(model.chat.survives(prompt, filling.unsqueeze(0))[0]):
            return filling
        ids = torch.tensor(model.chat.ids(model.chat.decode([filling.tolist()])[0]))[: len(filling)]
        filling = torch.cat([ids, filling[len(ids) :]])
        if not bool(model.chat.allowed[filling].all()):
            return None
    return None


def _checkpoint(at: _Standing, rng: Generator) -> State:
    return {
        "weights": at.weights,
        **at.moments.state(),
        "best_ids": at.best.ids,
        "best_losses": at.best.losses,
        "discrete": at.discrete,
        "stale": at.stale,
        "step": at.step,
        "generator": rng.get_state(),
    }


def _restore(state: State, keep: int, rng: Generator) -> _Standing:
    """Where the search stood at a checkpoint; `rng` is set to where it was then."""
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    rng.set_state(tensors["generator"])
    return _Standing(
        tensors["weights"],
        Moments.restore(state),
        Buffer(tensors["best_ids"], tensors["best_losses"], keep),
        float(state["discrete"]),
        int(state["stale"]),
        int(state["step"]),
    )
