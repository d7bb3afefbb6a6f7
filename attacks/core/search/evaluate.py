"""Losses and gradients of slot fillings, for any objective over one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate.utils.memory import find_executable_batch_size, should_reduce_batch_size
from torch import Tensor

from attacks.core.errors import BadInput
from attacks.core.objectives import Bound
from attacks.core.prompt import Prompt, with_answer
from attacks.core.search.openings import Begun, Halves
from attacks.core.search.sharing import Group, common_filling, first_change, groups
from attacks.core.shields import Toll, penalised, toll_of
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


@dataclass(frozen=True, eq=False)
class _Standing:
    """What is known of the filling where a search stands, for the losses of candidates around it.

    The gradient leaves it behind. A search takes that in each step anew, also where it goes on from
    a checkpoint, so what is computed does not depend, to the last bit, on what came before.
    """

    filling: Tensor
    """(S,)"""
    keys: Prefix
    """Of its whole sequence."""
    telling: bool
    """Whether the opening is enough of the loss there."""


class Evaluator:
    """A bound objective as a function of the tokens in the slots.

    Everything before the first slot is computed once, and in each call what several candidates
    share before the first slot in which they differ (`sharing`); equal candidates are computed
    once. Sequences end at the last position that the objective reads, and the forward pass stops
    after the deepest layer that it reads. Where only the best are asked for, candidates that the
    opening of the loss rules out are not run to the end (`openings`). What the model's shields cost
    is added to the objective (`shields`).
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
            bound: when sharing, leave candidates that cannot be among the best asked for.
            batch_size: candidates in one pass; halved for good when memory runs out.

        Raises:
            BadInput: a slot that no read can see.
        """
        objective = penalised(model, prompt, objective)
        use_cache = use_cache and not any(shield.whole for shield in model.shields)
        check_causality(prompt, objective)
        self.model = model
        self.prompt = prompt
        self.objective = objective
        self.interventions = interventions
        self.batch_size = batch_size
        positions = [p for site in objective.reads for p in site.positions]
        self._length = max(positions) + 1
        self._first_read = min(positions)
        self._roles = with_answer(prompt.roles, prompt.target_ids)
        self._start = min(int(prompt.slots.min()), self._first_read) if use_cache else 0
        self._prefix: Prefix | None = None
        if self._start:
            self._prefix = model.prefix(
                prompt.ids[: self._start],
                interventions=interventions,
                roles=self._roles[: self._start],
            )
        self._toll = toll_of(model, prompt)
        self._share = share and use_cache
        self._halves = Halves.of(objective) if bound and self._share else None
        self._standing: _Standing | None = None

    def _at(self, filling: Tensor) -> _Standing:
        """What is known of the filling (S,) that candidates differ little from."""
        if self._standing is None or not torch.equal(self._standing.filling, filling):
            ids = self._sequences(filling.unsqueeze(0))[:, self._start :]
            trace, keys = self._extended(ids, self.objective.reads, self._prefix, self._start)
            self._standing = self._stands(filling, trace, self.objective(trace)[0], keys)
        return self._standing

    def _stands(self, filling: Tensor, trace: Trace, loss: Tensor, keys: Prefix) -> _Standing:
        telling = True
        if self._halves is not None:
            opening = self._halves.opening(self._halves.head_of(trace))[0]
            telling = bool(opening > _TELLING * loss)
        return _Standing(filling, keys.detached(), telling)

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
        distinct, copies, losses = candidates, torch.arange(len(candidates)), None
        if self._share:
            distinct, copies = torch.unique(candidates, dim=0, return_inverse=True)
        with torch.no_grad(), self.model.editing(self.interventions):
            try:
                losses = self._in_batches(self.batch_size, distinct, k)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
            if losses is None:
                # Not above, where the error holds on to the memory of the attempt. The helper
                # collects garbage at every call, which costs more than a step of a small model; so
                # it is asked only once memory has run out.
                back_off = find_executable_batch_size(
                    self._in_batches, starting_batch_size=max(1, self.batch_size // 2)
                )
                losses = back_off(distinct, k)
        if self._toll is not None:
            losses = self._with_toll(self._toll, distinct, losses, k)
        if losses.isnan().any():
            raise FloatingPointError("the loss is not a number (NaN)")
        return losses[copies]

    def _with_toll(self, toll: Toll, candidates: Tensor, losses: Tensor, k: int | None) -> Tensor:
        """(B,) losses with what shields without gradient add; with `k` of the k lowest alone."""
        order = losses.argsort(stable=True)[:k]
        asked = self.model.chat.messages(self.prompt, candidates[order])
        found = torch.full_like(losses, float("inf"))
        found[order] = losses[order] + toll(asked)
        return found

    def _in_batches(self, batch_size: int, candidates: Tensor, k: int | None) -> Tensor:
        self.batch_size = batch_size
        losses = torch.full((len(candidates),), float("inf"))
        sequences, filling = self._sequences(candidates), common_filling(candidates)
        order = torch.arange(len(candidates))
        if self._share:  # Those that share most come together.
            order = first_change(candidates, filling).argsort(stable=True)
        plans = []
        for batch in torch.split(order, batch_size):
            halves = self._halving(filling, len(batch), k)
            end = halves.end if halves else self._length
            plans.append((batch, halves, self._groups(candidates[batch], filling, end)))
        furthest = max(group.start for _, _, found in plans for group in found)
        keys = self._prefix if furthest == self._start else self._at(filling).keys
        for batch, halves, found in plans:
            parts = [
                (batch[rows], start, keys.until(start) if keys and start else None)
                for rows, start in found
            ]
            if halves is not None and k is not None:
                self._by_halves(losses, sequences, parts, halves, k)
                continue
            for rows, start, prefix in parts:
                trace = self._trace(sequences[rows, start:], prefix, start)
                losses[rows] = self.objective(trace).float().cpu()
        return losses

    def _by_halves(
        self,
        losses: Tensor,
        sequences: Tensor,
        parts: Sequence[tuple[Tensor, int, Prefix | None]],
        halves: Halves,
        k: int,
    ) -> None:
        """Put into `losses` those of `parts` that may be among the k lowest.

        Args:
            losses: (N,) of all candidates, infinite where they are not known.
            sequences: (N, length) of all.
            parts: which candidates, where their own part begins, and what they share before it.
            halves: of the objective.
            k: how many are asked for.
        """
        heads, tails = tuple(halves.heads.values()), tuple(halves.tails.values())
        begun, floors = [], torch.full_like(losses, float("inf"))
        for rows, start, prefix in parts:
            inputs = sequences[rows, start : halves.end]
            trace, keys = self._extended(inputs, heads, prefix, start)
            begun.append(Begun(rows, trace, keys))
            floors[rows] = halves.opening(trace).float().cpu()
        batch = torch.cat([rows for rows, _, _ in parts])
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

    def _halving(self, filling: Tensor, rows: int, k: int | None) -> Halves | None:
        """The halves in which to run a batch of `rows`, where that is likely to pay.

        It must spare more than a few more passes cost, and openings must tell candidates apart.
        """
        if self._halves is None or k is None:
            return None
        spared = (rows - k) * (self._length - self._halves.end)
        pays = spared > 4 * self._overhead() and self._at(filling).telling
        return self._halves if pays else None

    def _groups(self, candidates: Tensor, filling: Tensor, end: int) -> list[Group]:
        """Candidates that go together up to `end`."""
        if not self._share or len(candidates) == 1:
            return [Group(torch.arange(len(candidates)), self._start)]
        return groups(
            candidates,
            filling,
            self.prompt.slots.tolist(),
            start=self._start,
            stop=self._first_read,
            end=end,
            overhead=self._overhead(),
        )

    def gradient(self, candidate: Tensor) -> tuple[Tensor, float]:
        """Gradient (S, V) of the loss at `candidate` (S,) with respect to one-hot tokens; the loss.

        The chain rule is taken at the embeddings: dL/d onehot = dL/d embedding . E^T, so no one-hot
        matrix is ever made.

        Raises:
            FloatingPointError: the gradient is not a number.
        """
        ids = self._sequences(candidate.unsqueeze(0))[:, self._start :]

        def loss_at(embeds: Tensor) -> Tensor:
            if not self._share:
                return self.objective(self._trace(embeds, self._prefix, self._start))[0]
            trace, keys = self._extended(embeds, self.objective.reads, self._prefix, self._start)
            loss = self.objective(trace)[0]
            self._standing = self._stands(candidate, trace, loss, keys)
            return loss

        with self.model.editing(self.interventions):
            loss, gradient = self.model.gradient(loss_at, self.model.embed(ids))
            table = self.model.embedding_table
        rows = gradient[0, self.prompt.slots.to(gradient.device) - self._start]
        if torch.isnan(rows).any():
            raise FloatingPointError("the gradient is not a number (NaN)")
        return rows @ table.T.to(rows.dtype), float(loss)

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
