"""Changes to the forward pass, as values: which sites, and what becomes of the activation there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.core.errors import BadInput
from attacks.core.sites import RESIDUAL_WRITES, Site


@dataclass(frozen=True, eq=False)
class Context:
    """What an intervention is told besides the activation."""

    site: Site
    """Where the activation was read."""
    step: int
    """Decoding step: 0 is the pass over the prompt, which yields the first new token."""
    roles: Tensor | None
    """(B, T) role of each position (see `attacks.core.prompt`), or None where it is not known."""
    mask: Tensor | None
    """(B, T) true at real tokens, or None where nothing is padded."""
    positions: Tensor | None = None
    """(B, T) int64: where each token stands in its prompt, -1 at padding; None after the prompt."""
    steps: Tensor | None = None
    """(B, T) int64 decoding step of each position where a pass is given an answer: 0 in the prompt,
    n at the answer's n-th token. None elsewhere: all positions are at `step`."""

    def first(self, steps: int, activation: Tensor) -> Tensor:
        """(B, T) bool: which positions of `activation` (B, T, ...) are at the first `steps`."""
        rows = activation.shape[:2]
        if self.steps is None:
            return torch.full(rows, self.step < steps, device=activation.device)
        return (self.steps < steps).to(activation.device).expand(rows)


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
    """Of the model."""

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(Site(at, name) for at in range(self.n_layers) for name in RESIDUAL_WRITES)

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        unit = self.direction / self.direction.norm()
        unit = unit.to(activation.device, activation.dtype)
        along: Tensor = (activation @ unit).unsqueeze(-1) * unit
        return activation - along


@dataclass(frozen=True, eq=False)
class AblateSubspace(Intervention):
    """x - (x B^T) B at every residual write of every layer: `AblateDirection` for k directions."""

    basis: Tensor
    """(k, D) orthonormal rows; gradients flow to it."""
    n_layers: int
    """Of the model."""

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(Site(at, name) for at in range(self.n_layers) for name in RESIDUAL_WRITES)

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        basis = self.basis.to(activation.device, activation.dtype)
        return activation - (activation @ basis.T) @ basis


@dataclass(frozen=True, eq=False)
class ScaleHeads(Intervention):
    """Multiplies the outputs of some attention heads by `gamma`; 0 ablates them.

    With `keep_norm` the heads of a layer together keep their norm, as in the code of
    arXiv 2510.06036, which amplifies the ones that are left and so is no plain ablation. Taken for
    each token by itself, and not for a whole batch as there: an answer would depend on who shares
    the batch.
    """

    heads: tuple[tuple[int, int], ...]
    """(layer, head)"""
    gamma: float = 0.0
    keep_norm: bool = False

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(Site(layer, "z") for layer in sorted({layer for layer, _ in self.heads}))

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        factors = torch.ones(activation.shape[-2], device=activation.device, dtype=activation.dtype)
        factors[[head for layer, head in self.heads if layer == ctx.site.layer]] = self.gamma
        scaled = activation * factors.unsqueeze(1)
        if self.keep_norm:
            before, after = (
                z.flatten(-2).norm(dim=-1, keepdim=True).unsqueeze(-1) for z in (activation, scaled)
            )
            scaled = scaled * (before / after.clamp_min(1e-6))
        return scaled


@dataclass(frozen=True, eq=False)
class AddDirection(Intervention):
    """x + coefficient * direction at one block's input.

    Everywhere and always, it is activation addition (arXiv 2406.11717, section 2.4). During the
    prompt only, and at some roles only, it is the steering of arXiv 2507.11878, section 3.
    """

    direction: Tensor
    """(D,) as long as it was measured: the coefficient is in units of it."""
    layer: int
    """The block."""
    coefficient: float
    """Negative: away from what the direction stands for."""
    roles: tuple[int, ...] = ()
    """Roles (`attacks.core.prompt`) of the positions that it is added at; none: all."""
    spare: int = 0
    """With roles: how many of these positions, counted from their end, are left alone."""
    prompt_only: bool = False
    """Whether generated tokens are left alone."""

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site(self.layer, "resid_pre"),)

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        if self.prompt_only and ctx.step > 0:
            return activation
        shift = (self.coefficient * self.direction).to(activation)
        if not (self.roles or self.prompt_only):
            return activation + shift
        chosen = ctx.first(1, activation) if self.prompt_only else torch.tensor(True)
        if self.roles:
            if ctx.roles is None:
                raise BadInput(
                    "a direction added at some roles needs a forward pass with role information"
                )
            named = torch.isin(ctx.roles, torch.tensor(self.roles, device=ctx.roles.device))
            if self.spare:
                named = named & (named.flip(-1).cumsum(-1).flip(-1) > self.spare)
            chosen = chosen.to(activation.device) & named.to(activation.device)
        return activation + chosen.unsqueeze(-1) * shift


@dataclass(frozen=True, eq=False)
class SuppressTokens(Intervention):
    """Adds `bias` to the logits of `token_ids` at the first `steps` decoding steps.

    The logit bias of arXiv 2412.06748, section 3: on a model's natural refusal openers or on its
    control tokens. Above zero it induces what it suppresses below.
    """

    token_ids: Tensor
    """(K,) int64"""
    bias: float
    """Added to their logits, in nats."""
    steps: int
    """How many tokens of the answer it acts on, from the first."""

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site(-1, "logits"),)

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        if ctx.step >= self.steps:
            return activation
        shift = torch.zeros(activation.shape[-1], device=activation.device, dtype=activation.dtype)
        shift[self.token_ids.to(activation.device)] = self.bias
        early = ctx.first(self.steps, activation).unsqueeze(-1)
        return torch.where(early, activation + shift, activation)


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


@dataclass(frozen=True, eq=False)
class DrawTokens(Intervention):
    """Leaves of the logits one token only, drawn by temperature and nucleus (arXiv 1904.09751).

    So an answer that is greedy is a drawn one. The random numbers are given, one for each row and
    step: a row's answer depends neither on the rows beside it nor on how many there are.
    """

    uniforms: Tensor
    """(B, G) float64 in [0, 1): of each row, for each decoding step."""
    temperature: float
    top_p: float
    """The smallest set of tokens with at least this probability is drawn from; 1: all."""

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site(-1, "logits"),)

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        logits = activation[:, -1].double() / self.temperature
        shares, ids = logits.softmax(-1).sort(descending=True, stable=True)
        before = shares.cumsum(-1) - shares
        shares = shares.where(before < self.top_p, 0.0)
        upto = shares.cumsum(-1)
        u = self.uniforms[:, ctx.step, None].to(upto.device) * upto[:, -1:]
        # Rounding must not draw behind the last token that has a share.
        place = (upto <= u).sum(-1, keepdim=True).minimum((shares > 0).sum(-1, keepdim=True) - 1)
        chosen = ids.gather(-1, place)
        drawn = torch.full_like(activation, float("-inf"))
        drawn[:, -1] = drawn[:, -1].scatter(-1, chosen, 0.0)
        return drawn
