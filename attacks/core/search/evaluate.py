"""Losses and gradients of slot fillings, for any objective over one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from accelerate.utils.memory import find_executable_batch_size, should_reduce_batch_size
from torch import Tensor

from attacks.core.errors import BadInput
from attacks.core.interventions import Intervention
from attacks.core.objectives import Bound
from attacks.core.prompt import GENERATED, Prompt

if TYPE_CHECKING:
    from attacks.core.model import Model


class Evaluator:
    """A bound objective as a function of the tokens in the slots.

    Everything before the first slot is computed once; sequences end at the last position that the
    objective reads, and the forward pass stops after the deepest layer that it reads.
    """

    def __init__(
        self,
        model: Model,
        prompt: Prompt,
        objective: Bound,
        *,
        interventions: Sequence[Intervention] = (),
        use_cache: bool = True,
        batch_size: int = 512,
    ) -> None:
        """Prepare the shared beginning.

        Args:
            model: the model under attack.
            prompt: its slots are filled.
            objective: bound to `prompt`.
            interventions: active in every pass.
            use_cache: compute what precedes the first slot once.
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
        start = min(int(prompt.slots.min()), min(positions)) if use_cache else 0
        roles = torch.cat([prompt.roles, torch.full_like(prompt.target_ids, GENERATED)])
        self._roles = roles[start : self._length]
        self._start = start
        self._prefix = (
            model.prefix(prompt.ids[:start], interventions=interventions) if start else None
        )

    def _sequences(self, candidates: Tensor) -> Tensor:
        """(B, length - start) ids after the shared beginning, up to the last position read."""
        filled = self.prompt.fill(candidates)
        target = self.prompt.target_ids.expand(len(candidates), -1)
        return torch.cat([filled, target], dim=1)[:, self._start : self._length]

    def losses(self, candidates: Tensor) -> Tensor:
        """(B,) float32 losses of the fillings (B, S), on the CPU.

        Raises:
            FloatingPointError: a loss is not a number.
        """
        with torch.no_grad():
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
        rows = (candidates[at : at + batch_size] for at in range(0, len(candidates), batch_size))
        parts = [self._trace_losses(self._sequences(chunk)) for chunk in rows]
        return torch.cat(parts).float().cpu()

    def gradient(self, candidate: Tensor) -> tuple[Tensor, float]:
        """Gradient (S, V) of the loss at `candidate` (S,) with respect to one-hot tokens; the loss.

        The chain rule is taken at the embeddings: dL/d onehot = dL/d embedding . E^T, so no one-hot
        matrix is ever made.

        Raises:
            FloatingPointError: the gradient is not a number.
        """
        ids = self._sequences(candidate.unsqueeze(0))
        embeds = self.model.embed(ids).detach().requires_grad_()
        with torch.enable_grad():
            loss = self._trace_losses(embeds)[0]
            (gradient,) = torch.autograd.grad(loss, embeds)
        rows = gradient[0, self.prompt.slots.to(gradient.device) - self._start]
        if torch.isnan(rows).any():
            raise FloatingPointError("the gradient is not a number (NaN)")
        return rows @ self.model.embedding_table.T.to(rows.dtype), float(loss.detach())

    def soft_losses(self, rows: Tensor) -> Tensor:
        """(B,) float32 losses with the embeddings `rows` (B, S, D) in the slots.

        Gradients flow to `rows`, which may be of a finer dtype than the model's.
        """
        ids = self._sequences(self.prompt.slot_ids.unsqueeze(0))
        embeds = self.model.embed(ids).detach().expand(len(rows), -1, -1)
        slots = self.prompt.slots.to(embeds.device) - self._start
        return self._trace_losses(embeds.index_copy(1, slots, rows.to(embeds.dtype)))

    def _trace_losses(self, inputs: Tensor) -> Tensor:
        trace = self.model.trace(
            inputs,
            self.objective.reads,
            prefix=self._prefix,
            interventions=self.interventions,
            roles=self._roles,
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
