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
from attacks.core.search.sharing import Group, common_filling, groups
from attacks.core.weights import Change

if TYPE_CHECKING:
    from attacks.core.model import Model
    from attacks.core.model.cache import Prefix

#: What one more pass costs whatever its size, in floating-point operations that the device could do
#: meanwhile: some milliseconds of Python and of small kernels. By whether it is a CPU.
_OVERHEAD = {True: 2e8, False: 3e11}


class Evaluator:
    """A bound objective as a function of the tokens in the slots.

    Everything before the first slot is computed once, and in each call what several candidates
    share before the first slot in which they differ (`sharing`); sequences end at the last position
    that the objective reads, and the forward pass stops after the deepest layer that it reads.
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

    def _keys(self, ids: Tensor) -> Prefix:
        roles = self._roles[: len(ids)]
        return self.model.prefix(ids, interventions=self.interventions, roles=roles)

    def _sequences(self, candidates: Tensor) -> Tensor:
        """(B, length) ids up to the last position read."""
        filled = self.prompt.fill(candidates)
        target = self.prompt.target_ids.expand(len(candidates), -1)
        return torch.cat([filled, target], dim=1)[:, : self._length]

    def losses(self, candidates: Tensor) -> Tensor:
        """(B,) float32 losses of the fillings (B, S), on the CPU.

        Raises:
            FloatingPointError: a loss is not a number.
        """
        with torch.no_grad(), self.model.editing(self.interventions):
            try:
                losses = self._in_batches(self.batch_size, candidates)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                # The helper collects garbage at every call, which costs more than a step of a small
                # model; so it is asked only once memory has run out.
                back_off = find_executable_batch_size(
                    self._in_batches, starting_batch_size=max(1, self.batch_size // 2)
                )
                losses = back_off(candidates)
        if torch.isnan(losses).any():
            raise FloatingPointError("the loss is not a number (NaN)")
        return losses

    def _in_batches(self, batch_size: int, candidates: Tensor) -> Tensor:
        self.batch_size = batch_size
        losses = torch.empty(len(candidates))
        sequences = self._sequences(candidates)
        for (rows, start), prefix in self._passes(candidates):
            for at in range(0, len(rows), batch_size):
                chunk = rows[at : at + batch_size]
                found = self._trace_losses(sequences[chunk, start:], prefix, start)
                losses[chunk] = found.float().cpu()
        return losses

    def _passes(self, candidates: Tensor) -> list[tuple[Group, Prefix | None]]:
        """Candidates that go together, and the keys and values of what they share."""
        everything = Group(torch.arange(len(candidates)), self._start)
        if not self._share or len(candidates) == 1:
            return [(everything, self._prefix)]
        filling = common_filling(candidates)
        found = groups(
            candidates,
            filling,
            self.prompt.slots.tolist(),
            start=self._start,
            stop=self._first_read,
            end=self._length,
            overhead=_OVERHEAD[self.model.device.type == "cpu"] / self.model.meter.per_position,
        )
        furthest = found[-1].start
        if furthest == self._start:
            return [(everything, self._prefix)]
        keys = self._keys(self._sequences(filling.unsqueeze(0))[0, :furthest])
        return [(group, keys.until(group.start) if group.start else None) for group in found]

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
            loss = self._trace_losses(embeds, self._prefix, self._start)[0]
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
            return self._trace_losses(filled, self._prefix, self._start)

    def _trace_losses(self, inputs: Tensor, prefix: Prefix | None, start: int) -> Tensor:
        trace = self.model.trace(
            inputs,
            self.objective.reads,
            prefix=prefix,
            interventions=self.interventions,
            roles=self._roles[start : self._length],
        )
        return self.objective(trace)


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
