"""Losses and gradients of slot fillings, for any objective over one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from accelerate.utils.memory import find_executable_batch_size, should_reduce_batch_size
from torch import Tensor

from attacks.core.errors import BadInput
from attacks.core.objectives import Bound
from attacks.core.prompt import GENERATED, Prompt
from attacks.core.search.openings import Begun, Halves
from attacks.core.search.sharing import Group, common_filling, first_change, groups
from attacks.core.sites import Site, Trace
from attacks.core.weights import Change

if TYPE_CHECKING:
    from attacks.core.model import Model
    from attacks.core.model.cache import Prefix

#: What one more pass costs whatever its size, by whether the device is a CPU: operations that the
#: device could do meanwhile (some milliseconds of Python and of small kernels), and positions whose
#: computation takes as long as fetching all weights once more.
_OVERHEAD = {True: 1.5e8, False: 3e11}
_FETCHING = {True: 32, False: 128}

#: How much of the loss where a search stands its opening has to be, for openings to tell candidates
#: apart: below it most of them have to be run to the end anyway.
_TELLING = 0.4


class Evaluator:
    """A bound objective as a function of the tokens in the slots.

    Everything before the first slot is computed once, and in each call what several candidates
    share before the first slot in which they differ (`sharing`); equal candidates are computed
    once. Sequences end at the last position that the objective reads, and the forward pass stops
    after the deepest layer that it reads. Where only the best are asked for, candidates that the
    opening of the loss rules out are not run to the end (`openings`).
    """

    def __init__(
        self,
        model: Model,
        prompt: Prompt,
        objective: Bound,
        *,
        interventions: Sequence[Change] = (),
        use_cache: bool = True,
        share: bool = True,
        bound: bool = True,
        batch_size: int = 512,
    ) -> None:
        """Prepare the shared beginning.

        Args:
            model: the model under attack.
            prompt: its slots are filled.
            objective: bound to `prompt`.
            interventions: active in every pass.
            use_cache: compute what precedes the first slot once.
            share: with the cache, also what candidates share after it.
            bound: with the cache, leave candidates that cannot be among the best asked for.
            batch_size: candidates in one pass; halved for good when memory runs out.

        Raises:
            BadInput: a slot that no read can see.
        """
        check_causality(prompt, objective)
        self.model = model
        self.prompt = prompt
        self.objective = objective
        self.interventions = interventions
        self.batch_size = batch_size
        positions = [p for site in objective.reads for p in site.positions]
        self._length = max(positions) + 1
        self._first_read = min(positions)
        self._roles = torch.cat([prompt.roles, torch.full_like(prompt.target_ids, GENERATED)])
        self._start = min(int(prompt.slots.min()), self._first_read) if use_cache else 0
        self._prefix = self._keys(prompt.ids[: self._start]) if self._start else None
        self._share = share and use_cache
        self._halves = Halves.of(objective) if bound and use_cache else None
        self._standing: tuple[Tensor, Prefix] | None = None
        """A filling (S,), and the keys and values of its sequence or of the beginning of it. It is
        kept from a gradient to the next losses and no longer, so that what is computed, to the last
        bit, does not depend on what came before."""
        self._telling = True
        """Whether openings tell candidates apart there."""

    def _keys(self, ids: Tensor) -> Prefix:
        roles = self._roles[: len(ids)]
        return self.model.prefix(ids, interventions=self.interventions, roles=roles)

    def _keys_of(self, filling: Tensor, length: int) -> Prefix:
        """Of the first `length` positions with this filling; the gradient has them as a rule."""
        if self._standing is not None:
            known, keys = self._standing
            if keys.length >= length and torch.equal(known, filling):
                return keys.until(length)
        keys = self._keys(self._sequences(filling.unsqueeze(0))[0, :length])
        self._standing = (filling, keys)
        return keys

    def _sequences(self, candidates: Tensor) -> Tensor:
        """(B, length) ids up to the last position read."""
        filled = self.prompt.fill(candidates)
        target = self.prompt.target_ids.expand(len(candidates), -1)
        return torch.cat([filled, target], dim=1)[:, : self._length]

    def losses(self, candidates: Tensor, k: int | None = None) -> Tensor:
        """(B,) float32 losses of the fillings (B, S), on the CPU.

        With `k` those that are not among the k lowest of the distinct fillings may be infinite.

        Raises:
            FloatingPointError: a loss is not a number.
        """
        distinct, copies = candidates, torch.arange(len(candidates))
        if self._share:
            distinct, copies = torch.unique(candidates, dim=0, return_inverse=True)
        with torch.no_grad(), self.model.editing(self.interventions):
            try:
                losses = self._in_batches(self.batch_size, distinct, k)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                # The helper collects garbage at every call, which costs more than a step of a small
                # model; so it is asked only once memory has run out.
                back_off = find_executable_batch_size(
                    self._in_batches, starting_batch_size=max(1, self.batch_size // 2)
                )
                losses = back_off(distinct, k)
        self._standing, self._telling = None, True
        if losses.isnan().any():
            raise FloatingPointError("the loss is not a number (NaN)")
        return losses[copies]

    def _in_batches(self, batch_size: int, candidates: Tensor, k: int | None) -> Tensor:
        self.batch_size = batch_size
        losses = torch.full((len(candidates),), float("inf"))
        sequences, filling = self._sequences(candidates), common_filling(candidates)
        order = torch.arange(len(candidates))
        if self._share:  # Those that share most come together.
            order = first_change(candidates, filling).argsort(stable=True)
        for batch in torch.split(order, batch_size):
            halves = self._halves
            if k is not None and halves is not None and self._halving_pays(halves, len(batch) - k):
                self._by_halves(losses, sequences, filling, batch, halves, k)
                continue
            for (rows, start), prefix in self._passes(candidates[batch], filling, self._length):
                trace = self._trace(sequences[batch[rows], start:], prefix, start)
                losses[batch[rows]] = self.objective(trace).float().cpu()
        return losses

    def _by_halves(
        self,
        losses: Tensor,
        sequences: Tensor,
        filling: Tensor,
        batch: Tensor,
        halves: Halves,
        k: int,
    ) -> None:
        """Put the losses of those of a batch that may be among the k lowest into `losses`."""
        candidates = sequences[batch][:, self.prompt.slots]
        heads, tails = tuple(halves.heads.values()), tuple(halves.tails.values())
        begun, floors = [], torch.full((len(sequences),), float("inf"))
        for (rows, start), prefix in self._passes(candidates, filling, halves.end):
            at = batch[rows]
            trace, keys = self._extended(sequences[at, start : halves.end], heads, prefix, start)
            begun.append(Begun(at, trace, keys))
            floors[at] = halves.opening(trace).float().cpu()
        if floors[batch].isnan().any():
            raise FloatingPointError("the loss is not a number (NaN)")
        order = batch[floors[batch].argsort(stable=True)]
        for chosen in (order[:k], *torch.split(order[k:], max(k, len(order) // 4))):
            # Of those that are done; a loss is never below its floor.
            highest = losses.kthvalue(min(k, len(losses))).values
            chosen = chosen[floors[chosen] <= highest]
            if len(chosen) == 0:
                break
            part = Begun.joined([each.take(chosen) for each in begun])
            rest = sequences[part.rows, halves.end :]
            tail, _ = self._extended(rest, tails, part.keys, halves.end)
            losses[part.rows] = self.objective(halves.joined(part.trace, tail)).float().cpu()

    def _overhead(self) -> float:
        """Of one more pass, in positions of one sequence."""
        cpu = self.model.device.type == "cpu"
        return _OVERHEAD[cpu] / self.model.meter.per_position + _FETCHING[cpu]

    def _halving_pays(self, halves: Halves, rows: int) -> bool:
        """Whether two more passes cost less than half of what they may spare."""
        return self._telling and rows * (self._length - halves.end) > 4 * self._overhead()

    def _passes(
        self, candidates: Tensor, filling: Tensor, end: int
    ) -> list[tuple[Group, Prefix | None]]:
        """Candidates that go together up to `end`, and the keys and values of what they share."""
        found = [Group(torch.arange(len(candidates)), self._start)]
        if self._share and len(candidates) > 1:
            found = groups(
                candidates,
                filling,
                self.prompt.slots.tolist(),
                start=self._start,
                stop=self._first_read,
                end=end,
                overhead=self._overhead(),
            )
        furthest = found[-1].start
        keys = self._prefix if furthest == self._start else self._keys_of(filling, furthest)
        return [(group, keys.until(group.start) if keys else None) for group in found]

    def gradient(self, candidate: Tensor) -> tuple[Tensor, float]:
        """Gradient (S, V) of the loss at `candidate` (S,) with respect to one-hot tokens; the loss.

        The chain rule is taken at the embeddings: dL/d onehot = dL/d embedding . E^T, so no one-hot
        matrix is ever made.

        Raises:
            FloatingPointError: the gradient is not a number.
        """
        ids = self._sequences(candidate.unsqueeze(0))[:, self._start :]
        with torch.enable_grad(), self.model.editing(self.interventions):
            embeds = self.model.embed(ids).detach().requires_grad_()
            if self._share:
                trace, keys = self._extended(
                    embeds, self.objective.reads, self._prefix, self._start
                )
                loss = self.objective(trace)[0]
                self._standing = (candidate, keys.detached())
                if self._halves is not None:
                    opening = self._halves.opening(self._halves.head_of(trace))[0]
                    self._telling = bool(opening > _TELLING * loss)
            else:
                loss = self.objective(self._trace(embeds, self._prefix, self._start))[0]
            (gradient,) = torch.autograd.grad(loss, embeds)
            table = self.model.embedding_table
        rows = gradient[0, self.prompt.slots.to(gradient.device) - self._start]
        if torch.isnan(rows).any():
            raise FloatingPointError("the gradient is not a number (NaN)")
        return rows @ table.T.to(rows.dtype), float(loss.detach())

    def soft_losses(self, rows: Tensor) -> Tensor:
        """(B,) float32 losses with the embeddings `rows` (B, S, D) in the slots.

        Gradients flow to `rows`, which may be of a finer dtype than the model's.
        """
        ids = self._sequences(self.prompt.slot_ids.unsqueeze(0))[:, self._start :]
        with self.model.editing(self.interventions):
            embeds = self.model.embed(ids).detach().expand(len(rows), -1, -1)
            slots = self.prompt.slots.to(embeds.device) - self._start
            filled = embeds.index_copy(1, slots, rows.to(embeds.dtype))
            return self.objective(self._trace(filled, self._prefix, self._start))

    def _trace(self, inputs: Tensor, prefix: Prefix | None, start: int) -> Trace:
        return self.model.trace(
            inputs,
            self.objective.reads,
            prefix=prefix,
            interventions=self.interventions,
            roles=self._roles[start : self._length],
        )

    def _extended(
        self, inputs: Tensor, reads: Sequence[Site], prefix: Prefix | None, start: int
    ) -> tuple[Trace, Prefix]:
        """`Model.extended` by `inputs` (B, T) or (B, T, D), which begin at position `start`."""
        return self.model.extended(
            inputs,
            reads,
            prefix=prefix,
            interventions=self.interventions,
            roles=self._roles[start : start + inputs.shape[1]],
        )


def check_causality(prompt: Prompt, objective: Bound) -> None:
    """Refuse slots that no read can see.

    Raises:
        BadInput: a slot stands after the last position that the objective reads.
    """
    last = max(p for site in objective.reads for p in site.positions)
    if prompt.n_slots and int(prompt.slots.max()) > last:
        raise BadInput(
            f"slot at position {int(prompt.slots.max())} comes after the last position that the "
            f"objective reads ({last}); attention is causal, so it could change nothing"
        )
