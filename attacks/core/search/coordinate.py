"""Coordinate search over the tokens in the slots, guided by the gradient or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Generator, Tensor

from attacks.core.errors import BadInput
from attacks.core.prompt import Prompt
from attacks.core.search.buffer import Buffer
from attacks.core.search.candidates import (
    random_fillings,
    ranked_swaps,
    swap,
    top_tokens,
    uniform_choices,
)
from attacks.core.search.moves import Moves, Seen, merged
from attacks.core.search.standing import Standing, checkpoint, restore

if TYPE_CHECKING:
    from attacks.core.model import Model
    from attacks.core.state import State


class Losses(Protocol):
    """What a search asks of an evaluator."""

    def losses(self, candidates: Tensor, k: int | None = None) -> Tensor:
        """(B,) losses of the fillings (B, S).

        With `k` those that are not among the k lowest of the distinct fillings may be infinite.
        """

    def gradient(self, candidate: Tensor) -> tuple[Tensor, float]:
        """(S, V) gradient at the filling (S,) with respect to one-hot tokens, and the loss."""


#: (B, S) -> (B,) true for fillings that may be used.
Survives = Callable[[Tensor], Tensor]
#: (S,) -> whether the best filling is good enough to end with.
Done = Callable[[Tensor], bool]


class Screen(Protocol):
    """Chooses which candidates are evaluated."""

    def __call__(
        self, candidates: Tensor, evaluator: Losses, k: int, rng: Generator
    ) -> tuple[Tensor, Tensor]:
        """Those of `candidates` (B, S) that were evaluated, and their losses.

        The k lowest distinct ones are wanted; other losses may be infinite.
        """


def everything(
    candidates: Tensor, evaluator: Losses, k: int, rng: Generator
) -> tuple[Tensor, Tensor]:
    """The screen that lets all candidates through."""
    return candidates, evaluator.losses(candidates, k)


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
    """Rounds of candidates and choice."""
    width: int
    """Candidates drawn in each step."""
    topk: int
    """Tokens per slot that the gradient proposes."""
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
    """False: new tokens are drawn uniformly from all allowed ones."""
    moves: Moves = field(default_factory=Moves)
    """How candidates are drawn and merged."""

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
        single = self.n_replace == 1 and not self.replace_coefficient
        if self.moves.draw == "ranked" and not (single and self.use_gradient):
            raise BadInput(
                "draw='ranked' changes one slot at a time, following the gradient: it needs "
                "n_replace=1 and replace_coefficient=0"
            )

    def run(
        self,
        model: Model,
        prompt: Prompt,
        evaluator: Losses,
        *,
        rng: Generator,
        state: State | None = None,
        survives: Survives | None = None,
        screen: Screen = everything,
        done: Done | None = None,
        sure: Done | None = None,
        begin: Tensor | None = None,
        step: int = 0,
    ) -> Iterator[Found]:
        """Search from the prompt's own filling, or from others, or go on from `state`.

        Args:
            model: the model under attack.
            prompt: its slots are filled.
            evaluator: losses and gradients of fillings.
            rng: draws the candidates.
            state: checkpoint to go on from.
            survives: by default, what re-tokenises to itself in `prompt`.
            screen: chooses which of the survivors are evaluated.
            done: whether the search may end.
            sure: whether it may end for a loss of at most `early_stop`; by default it may.
            begin: (N, S) fillings to begin from in place of the prompt's own: the first step.
            step: how many steps were taken before.

        Yields:
            `Found` after each step, over all fillings evaluated so far.
        """
        survives = survives or partial(model.chat.survives, prompt)
        if state is None:
            at = self._start(model, prompt, evaluator, rng, survives, begin, step)
            if at.step > step:
                yield Found(at.best.ids, at.best.losses, checkpoint(at, rng))
        else:
            at = restore(state, max(1, self.buffer), self.keep, rng)
        while at.step < self.steps and not self._finished(at, done, sure):
            drawn, at = self._drawn(model, evaluator, at, rng)
            drawn = _usable(drawn, at, survives)[: self.moves.width(at.step, self.width)]
            ids, losses = self._evaluated(drawn, at, evaluator, rng, screen)
            if self.moves.merge > 1:
                best = Buffer.empty(prompt.n_slots, self.moves.merge).add(ids, losses)
                joined = _usable(merged(at.pool.ids[0], best.ids), at, survives)
                more, their = self._evaluated(joined, at, evaluator, rng, everything)
                ids, losses = torch.cat([ids, more]), torch.cat([losses, their])
            at = self._after(at, ids, losses, prompt.n_slots, rng)
            yield Found(at.best.ids, at.best.losses, checkpoint(at, rng))

    def _start(
        self,
        model: Model,
        prompt: Prompt,
        evaluator: Losses,
        rng: Generator,
        survives: Survives,
        begin: Tensor | None,
        step: int,
    ) -> Standing:
        """Where the search begins; a step on, where that is the best of several fillings."""
        start = prompt.slot_ids.unsqueeze(0) if begin is None else begin
        if begin is None and self.moves.starts > 1:
            count = self.moves.starts - 1
            drawn = random_fillings(model.chat.allowed, prompt.n_slots, count, rng)
            start = torch.cat([start, drawn[survives(drawn)]])
        losses = evaluator.losses(start)
        pool, best = (
            Buffer.empty(prompt.n_slots, size).add(start, losses)
            for size in (max(1, self.buffer), self.keep)
        )
        several = begin is not None or self.moves.starts > 1
        return Standing(
            pool,
            best,
            initial=float(pool.losses[0]),
            n_replace=self._n_replace(1.0, prompt.n_slots),
            step=step + several,
            seen=Seen(start) if self.moves.fresh else None,
        )

    def _drawn(
        self, model: Model, evaluator: Losses, at: Standing, rng: Generator
    ) -> tuple[Tensor, Standing]:
        """(B, S) fillings to choose from, in order, and the search with the gradient taken in."""
        current, allowed = at.pool.ids[0], model.chat.allowed
        if self.use_gradient:
            gradient, _ = evaluator.gradient(current)
            guide, average = self.moves.guide(gradient, at.average, current, model)
            choices = top_tokens(guide, current, allowed, self.topk)
            at = replace(at, average=average)
        else:
            choices = uniform_choices(current, allowed)
        if self.moves.draw == "ranked":
            return ranked_swaps(current, choices), at
        width = self.moves.width(at.step, self.width)
        drawn = swap(current, choices, width=width, n_replace=at.n_replace, rng=rng)
        return drawn, at

    def _evaluated(
        self, drawn: Tensor, at: Standing, evaluator: Losses, rng: Generator, screen: Screen
    ) -> tuple[Tensor, Tensor]:
        """Those of the fillings (B, S) that the screen lets through, and their losses.

        Losses of no interest, which are above all that the search can keep, may be infinite.
        """
        if len(drawn) == 0:
            return drawn, torch.empty(0)
        ids, losses = screen(drawn, evaluator, max(self.buffer, self.keep, self.moves.merge), rng)
        if at.seen is not None:
            at.seen.add(ids)
        return ids, losses

    def _after(
        self, at: Standing, drawn: Tensor, losses: Tensor, slots: int, rng: Generator
    ) -> Standing:
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

    def _finished(self, at: Standing, done: Done | None, sure: Done | None) -> bool:
        """Whether there is nothing left to do before the steps are used up."""
        if at.step == 0:
            return False  # The buffer holds the start alone, and one step is always taken.
        exhausted = bool(self.patience) and len(at.pool.ids) < 2
        reached = self.early_stop is not None and float(at.best.losses[0]) <= self.early_stop
        reached = reached and (sure is None or sure(at.best.ids[0]))
        return exhausted or reached or (done is not None and done(at.best.ids[0]))


def _usable(drawn: Tensor, at: Standing, survives: Survives) -> Tensor:
    """Those of the fillings (B, S) that may be evaluated, in their order."""
    if at.seen is not None:
        drawn = drawn[at.seen.new(drawn)]
    return drawn[survives(drawn)] if len(drawn) else drawn
