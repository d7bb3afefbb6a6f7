"""Changes to the forward pass, as values: which sites, and what becomes of the activation there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.core.sites import RESIDUAL_WRITES, Site


@dataclass(frozen=True, eq=False)
class Context:
    """What an intervention is told beside the activation."""

    site: Site
    step: int
    """Decoding step: 0 is the pass over the prompt, which yields the first new token."""
    roles: Tensor | None
    """(B, T) role of each position (see `attacks.core.prompt`), or None where it is not known."""
    mask: Tensor | None
    """(B, T) true at real tokens, or None where nothing is padded."""
    positions: Tensor | None = None
    """(B, T) int64: where each token stands in its prompt, -1 at padding; None after the prompt."""


class Intervention(ABC):
    """Maps the activation (B, T, D) at each of its sites to a new one; never edits in place."""

    @property
    @abstractmethod
    def sites(self) -> tuple[Site, ...]:
        """The sites it changes; their positions are ignored, use `ctx.roles` to choose."""

    @abstractmethod
    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        """The new activation, of the same shape and dtype."""


@dataclass(frozen=True, eq=False)
class AblateDirection(Intervention):
    """x - (x . r) r at every residual write of every layer (arXiv 2406.11717, section 2.4)."""

    direction: Tensor
    """(D,) of any norm."""
    n_layers: int

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(Site(at, name) for at in range(self.n_layers) for name in RESIDUAL_WRITES)

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        unit = self.direction / self.direction.norm()
        unit = unit.to(activation.device, activation.dtype)
        along: Tensor = (activation @ unit).unsqueeze(-1) * unit
        return activation - along


@dataclass(frozen=True, eq=False)
class SuppressTokens(Intervention):
    """Adds `bias` to the logits of `token_ids` at the first `steps` decoding steps.

    The logit bias of arXiv 2412.06748, section 3, on a model's natural refusal openers.
    """

    token_ids: Tensor
    """(K,) int64"""
    bias: float
    steps: int

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site(-1, "logits"),)

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        if ctx.step >= self.steps:
            return activation
        shift = torch.zeros(activation.shape[-1], device=activation.device, dtype=activation.dtype)
        shift[self.token_ids.to(activation.device)] = self.bias
        return activation + shift


@dataclass(frozen=True, eq=False)
class SoftSlots(Intervention):
    """Puts embeddings that no token has into the slots while the prompt is read (arXiv 2402.09063).

    The prompt's string holds placeholder tokens there; all other positions stay as they are.
    """

    slots: Tensor
    """(S,) int64 positions in the prompt, distinct."""
    embeddings: Tensor
    """(S, D)"""

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site(-1, "embed"),)

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        if ctx.step > 0:
            return activation
        assert ctx.positions is not None, "the prompt pass knows its positions"
        here = ctx.positions.unsqueeze(-1) == self.slots.to(ctx.positions.device)
        rows, places, slots = here.nonzero(as_tuple=True)
        changed = activation.clone()
        changed[rows, places] = self.embeddings.to(activation.device, activation.dtype)[slots]
        return changed
