"""Coordinate search over the tokens in the slots, guided by the gradient or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
    """Greedy coordinate search (GCG: arXiv 2307.15043, algorithm 1).

    Each step draws `width` candidates that differ from the current filling in `n_replace` slots,
    keeps those that re-tokenise to themselves, and moves to one of the best. With `use_gradient`
    the new tokens come from the `topk` that the gradient likes best in a slot, otherwise from all
    allowed ones: the same search without the gradient.
    """

    steps: int
    width: int
    topk: int
    n_replace: int = 1
    buffer: int = 0
    """0: move to the best candidate of the step, even when it is worse than the current one, as
    nanoGCG does. 1 or more: keep that many and always go on from the best."""
    keep: int = 10
    """How many of the best fillings seen are handed over."""
    use_gradient: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "width", "topk", "n_replace", "keep"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}={getattr(self, name)}: must be at least 1")

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
            pool = Buffer(start, losses, max(1, self.buffer))
            best = Buffer(start, losses, self.keep)
            done = 0
        else:
            pool, best, done = _restore(state, max(1, self.buffer), self.keep, rng)
        for step in range(done, self.steps):
            current = pool.ids[0]
            if self.use_gradient:
                gradient, _ = evaluator.gradient(current)
                choices = top_tokens(gradient, current, chat.allowed, self.topk)
            else:
                choices = uniform_choices(current, chat.allowed)
            drawn = swap(current, choices, width=self.width, n_replace=self.n_replace, rng=rng)
            drawn = drawn[chat.survives(prompt, drawn)]
            if len(drawn):
                losses = evaluator.losses(drawn)
                best = best.add(drawn, losses)
                base = pool if self.buffer else Buffer.empty(prompt.n_slots, 1)
                pool = base.add(drawn, losses)
            yield Found(best.ids, best.losses, _checkpoint(pool, best, step + 1, rng))


def _checkpoint(pool: Buffer, best: Buffer, step: int, rng: Generator) -> State:
    return {
        "pool_ids": pool.ids,
        "pool_losses": pool.losses,
        "best_ids": best.ids,
        "best_losses": best.losses,
        "step": step,
        "generator": rng.get_state(),
    }


def _restore(state: State, capacity: int, keep: int, rng: Generator) -> tuple[Buffer, Buffer, int]:
    """Buffers and step of a checkpoint; `rng` is set to where it was then."""
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    rng.set_state(tensors["generator"])
    pool = Buffer(tensors["pool_ids"], tensors["pool_losses"], capacity)
    best = Buffer(tensors["best_ids"], tensors["best_losses"], keep)
    return pool, best, int(state["step"])
