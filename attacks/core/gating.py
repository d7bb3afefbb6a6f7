"""Experts switched off or forced on, as values: which experts, and what becomes of the routing.

After "Mixture of Tunable Experts" (arXiv 2502.11096), which leaves open where routing is changed;
both readings are here. All of them act on every position, generated ones included.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attacks.core.errors import BadInput
from attacks.core.interventions import Context, Intervention
from attacks.core.sites import Site


class Expert(NamedTuple):
    """One routed expert of one block."""

    layer: int
    """The block, counted over all blocks, dense ones included."""
    number: int


@dataclass(frozen=True)
class _Gating(Intervention):
    """Changes what the routers of some experts' blocks say."""

    experts: tuple[Expert, ...]

    def _sites(self, name: str) -> tuple[Site, ...]:
        return tuple(Site(layer, name) for layer in sorted({e.layer for e in self.experts}))

    def _named(self, ctx: Context, routing: Tensor) -> Tensor:
        """(E,) true at this block's experts among `experts`."""
        mine = [expert.number for expert in self.experts if expert.layer == ctx.site.layer]
        named = torch.zeros(routing.shape[-1], dtype=torch.bool, device=routing.device)
        named[mine] = True
        return named


@dataclass(frozen=True)
class ExcludeExperts(_Gating):
    """Router logit -inf, before top-k: the next best expert is promoted in its place.

    Where gates are probabilities of all experts and not normalised to those chosen (OLMoE,
    Qwen2-MoE), the others' gates grow a little everywhere, since the softmax leaves it out.
    """

    @property
    def sites(self) -> tuple[Site, ...]:
        return self._sites("router")

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        """The new logits (B, T, E).

        Raises:
            BadInput: no expert of the block would be left.
        """
        named = self._named(ctx, activation)
        if named.all():
            raise BadInput(f"block {ctx.site.layer}: all {len(named)} experts are switched off")
        return activation.masked_fill(named, -torch.inf)


@dataclass(frozen=True)
class SilenceExperts(_Gating):
    """Gate 0, after top-k: nothing is promoted, and the gates that are left keep the old sum.

    Where all chosen experts are silenced, nothing is left to carry the sum, and the gates are 0.
    """

    @property
    def sites(self) -> tuple[Site, ...]:
        return self._sites("gates")

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        named = self._named(ctx, activation)
        left = activation.masked_fill(named, 0)
        return torch.where(
            (activation * named).sum(-1, keepdim=True) > 0, _summed(left, activation), activation
        )


@dataclass(frozen=True)
class ForceExperts(_Gating):
    """Chosen at every position, with the mean of the gates that the router gave.

    The weakest of the router's own choice make room, and all gates are scaled to keep the old sum.
    """

    @property
    def sites(self) -> tuple[Site, ...]:
        return self._sites("gates")

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        """The new gates (B, T, E).

        Raises:
            BadInput: more experts are forced on than a position has.
        """
        named = self._named(ctx, activation)
        slots = int((activation > 0).sum(-1).max())
        room = slots - int(named.sum())
        if room < 0:
            raise BadInput(
                f"block {ctx.site.layer}: {int(named.sum())} experts are forced on, and each "
                f"position has {slots}"
            )
        own, at = activation.masked_fill(named, 0).topk(room, dim=-1)
        kept = torch.zeros_like(activation).scatter(-1, at, own)
        mean = activation.sum(-1, keepdim=True) / slots
        return _summed(torch.where(named, mean, kept), activation)


def _summed(gates: Tensor, like: Tensor) -> Tensor:
    """`gates` scaled to the sum of `like` at each position; zeros stay zero."""
    total = gates.sum(-1, keepdim=True)
    return torch.where(total > 0, gates * (like.sum(-1, keepdim=True) / total), gates)


def per_block(experts: Iterable[Expert], most: int) -> list[Expert]:
    """`experts` in their order, without those whose block has had its `most` already."""
    taken: dict[int, int] = {}
    kept = []
    for expert in experts:
        taken[expert.layer] = taken.get(expert.layer, 0) + 1
        if taken[expert.layer] <= most:
            kept.append(expert)
    return kept
