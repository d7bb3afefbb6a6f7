"""Coordinate search over the tokens in the slots, guided by the gradient or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Generator, Tensor

from attacks.core.errors import BadInput
from attacks.core.prompt import Prompt
from attacks.core.search.buffer import Buffer
from attacks.core.search.candidates import swap, top_tokens, uniform_choices

if TYPE_CHECKING:
    from attacks.attack import State
    from attacks.core.model import Model


class Losses(Protocol):
    """What a search asks of an evaluator."""

    def losses(self, candidates: Tensor) -> Tensor:
        """(B,) losses of the fillings (B, S)."""

    def gradient(self, candidate: Tensor) -> tuple[Tensor, float]:
        """(S, V) gradient at the filling (S,) with respect to one-hot tokens, and the loss."""


@dataclass(frozen=True, eq=False)
class Found:
    """Where a search stands: candidates (N, S) best first, and enough to go on from here."""

    ids: Tensor
    losses: Tensor
    state: State


@dataclass(frozen=True)
class CoordinateSearch:
    """Greedy coordinate search (GCG: arXiv 2307.15043, algorithm 1; SSR: arXiv 2503.06269).

    Each step draws `width` candidates that differ from the current filling in some slots, keeps
    those that re-tokenise to themselves, and moves to one of the best. With `use_gradient` the new
    tokens come from the `topk` that the gradient likes best in a slot, otherwise from all allowed
    ones: the same search without the gradient.
    """

    steps: int
    width: int
    topk: int
    n_replace: int = 1
    """Slots redrawn in each candidate; the least, with a `replace_coefficient`."""
    buffer: int = 0
    """0: move to the best candidate of the step, even when it is worse than the current one, as
    nanoGCG does. 1 or more: keep that many and always go on from the best."""
    replace_coefficient: float = 0.0
    """Above 0 the number of slots redrawn falls with the loss: (best / initial)^(1 / coefficient)
    of all, renewed at each improvement. Where the initial loss is not positive, which leaves no
    such ratio, the share of steps left stands for it."""
    patience: int = 0
    """Above 0: after more steps than this in a row without improvement of the buffer's best, jump
    to a worse entry, drawn with probability softmax(-loss); the better ones are left behind, and
    the search ends when a single entry is left (version 3 of the SSR authors' code)."""
    early_stop: float | None = None
    """The search ends once a loss is at most this."""
    keep: int = 10
    """How many of the best fillings seen are handed over, those left behind included."""
    use_gradient: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "width", "topk", "n_replace", "keep"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("buffer", "patience", "replace_coefficient"):
            if getattr(self, name) < 0:
                raise BadInput(f"{name}={getattr(self, name)}: must be at least 0")
        if self.patience and self.buffer < 2:
            raise BadInput(
                f"patience={self.patience} needs a buffer of at least 2 to jump in, got "
                f"buffer={self.buffer}"
            )

    def run(
        self,
        model: Model,
        prompt: Prompt,
        evaluator: Losses,
        *,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[Found]:
        """Search from the prompt's own filling, or go on from `state`.

        Yields:
            `Found` after each step, over all fillings evaluated so far.
        """
        chat = model.chat
        if state is None:
            start = prompt.slot_ids.unsqueeze(0)
            losses = evaluator.losses(start)
            at = _Standing(
                Buffer(start, losses, max(1, self.buffer)),
                Buffer(start, losses, self.keep),
                initial=float(losses[0]),
                n_replace=self._n_replace(1.0, prompt.n_slots),
            )
        else:
            at = _restore(state, max(1, self.buffer), self.keep, rng)
        while at.step < self.steps and not self._finished(at):
            current = at.pool.ids[0]
            if self.use_gradient:
                gradient, _ = evaluator.gradient(current)
                choices = top_tokens(gradient, current, chat.allowed, self.topk)
            else:
                choices = uniform_choices(current, chat.allowed)
            drawn = swap(current, choices, width=self.width, n_replace=at.n_replace, rng=rng)
            drawn = drawn[chat.survives(prompt, drawn)]
            losses = evaluator.losses(drawn) if len(drawn) else torch.empty(0)
            at = self._after(at, drawn, losses, prompt.n_slots, rng)
            yield Found(at.best.ids, at.best.losses, _checkpoint(at, rng))

    def _after(
        self, at: _Standing, drawn: Tensor, losses: Tensor, slots: int, rng: Generator
    ) -> _Standing:
        """Where the search stands once `drawn` (B, S) with `losses` (B,) are taken in."""
        pool, best = at.pool, at.best
        if len(drawn):
            pool = (pool if self.buffer else Buffer.empty(slots, 1)).add(drawn, losses)
            best = best.add(drawn, losses)
        n_replace, stale = at.n_replace, at.stale + 1
        if pool.losses[0] < at.pool.losses[0]:
            stale = 0
            if self.replace_coefficient:
                left = 1 - (at.step + 1) / self.steps
                low = float(pool.losses[0])
                ratio = low / (at.initial + 1e-5) if at.initial > 0 else left
                n_replace = self._n_replace(ratio, slots)
        if self.patience and stale > self.patience:
            pool, stale = pool.jumped(rng), 0
        return replace(at, pool=pool, best=best, n_replace=n_replace, stale=stale, step=at.step + 1)

    def _n_replace(self, ratio: float, slots: int) -> int:
        if not self.replace_coefficient:
            return self.n_replace
        share = min(1.0, max(0.0, ratio)) ** (1 / self.replace_coefficient)
        return min(slots, max(self.n_replace, int(share * slots)))

    def _finished(self, at: _Standing) -> bool:
        """Whether there is nothing left to do before the steps are used up."""
        if at.step == 0:
            return False  # The buffer holds the start alone, and one step is always taken.
        exhausted = bool(self.patience) and len(at.pool.ids) < 2
        reached = self.early_stop is not None and float(at.best.losses[0]) <= self.early_stop
        return exhausted or reached


@dataclass(frozen=True, eq=False)
class _Standing:
    """All that a search needs to go on, beside the generator."""

    pool: Buffer
    """What it goes on from."""
    best: Buffer
    """The best fillings seen."""
    initial: float
    """Loss of the start."""
    n_replace: int
    stale: int = 0
    """Steps since the pool's best got better."""
    step: int = 0


_NUMBERS = ("initial", "n_replace", "stale", "step")


def _checkpoint(at: _Standing, rng: Generator) -> State:
    return {
        "pool_ids": at.pool.ids,
        "pool_losses": at.pool.losses,
        "best_ids": at.best.ids,
        "best_losses": at.best.losses,
        **{name: getattr(at, name) for name in _NUMBERS},
        "generator": rng.get_state(),
    }


def _restore(state: State, capacity: int, keep: int, rng: Generator) -> _Standing:
    """Where the search stood at a checkpoint; `rng` is set to where it was then."""
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    rng.set_state(tensors["generator"])
    return _Standing(
        Buffer(tensors["pool_ids"], tensors["pool_losses"], capacity),
        Buffer(tensors["best_ids"], tensors["best_losses"], keep),
        initial=float(state["initial"]),
        n_replace=int(state["n_replace"]),
        stale=int(state["stale"]),
        step=int(state["step"]),
    )
