"""Objectives over residual-stream activations: distances to a subspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, softplus

from attacks.core.artefact import Artefact
from attacks.core.errors import BadInput
from attacks.core.objectives.base import Bound, Objective
from attacks.core.prompt import INSTRUCTION, SLOT, Message, Prompt
from attacks.core.sites import Site, Trace

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True, eq=False)
class _AtSites(Bound):
    sites: tuple[Site, ...]

    @property
    def reads(self) -> tuple[Site, ...]:
        return self.sites


@dataclass(frozen=True)
class ProbeLoss(Objective):
    """Weighted sum over layers of -log P(harmless), by the linear probes in the artefact.

    Subspace rerouting with probes (arXiv 2503.06269, section 3): `resid_post` at the last token,
    P = sigmoid(w . x + b), label 1 for harmless as in the authors' code (the printed sign is the
    other one). The artefact holds `weight.<layer>` (D,) and `bias.<layer>` () for each layer.
    """

    layers: tuple[int, ...]
    """Blocks whose outputs are read."""
    weights: tuple[float, ...] = ()
    """One for each layer, or none: all 1."""

    def bind(self, model: Model, prompt: Prompt, artefact: Artefact) -> Bound:
        """Bind to the probes of `layers`.

        Raises:
            BadInput: not as many weights as layers.
            KeyError: the artefact lacks a layer's probe.
        """
        return _BoundProbe(
            _sites(self.layers, prompt.roles),
            _stacked(artefact, "weight", self.layers).to(model.device),
            _stacked(artefact, "bias", self.layers).to(model.device),
            _each(self.weights, self.layers, "weights").to(model.device),
        )


@dataclass(frozen=True, eq=False)
class _BoundProbe(_AtSites):
    weight: Tensor
    """(K, D)"""
    bias: Tensor
    """(K,)"""
    alpha: Tensor
    """(K,)"""

    def __call__(self, trace: Trace) -> Tensor:
        scores = (_states(trace, self.sites) * self.weight).sum(-1) + self.bias
        # -log sigmoid(z) = softplus(-z), without the saturation of the two-step form.
        return (self.alpha * softplus(-scores)).sum(1)


@dataclass(frozen=True)
class SteeringLoss(Objective):
    """Weighted sum over layers of the distance from where a steered activation would be.

    Subspace rerouting with refusal directions r (arXiv 2503.06269; unit vectors `direction.<layer>`
    (D,) in the artefact, harmful minus harmless), on e = `resid_post` at the last token. Two forms,
    which the paper and its code do not share:

    - cosine, the code's: (-s - cos(e, r))^2, with s of `targets`, from 0 to 1.
    - projection, the paper's: ((1 + a) <e*, r> - <e, r>)^2 / |e*|^2, with a the `scale` (-1 takes
      the direction out, -2 reflects) and e* the activation of the conversation without slots;
      `stability` adds that weight times |orth(e) - orth(e*)|^2 / |e*|^2, orth(x) = x - <x, r> r.
    """

    layers: tuple[int, ...]
    """Blocks whose outputs are read."""
    weights: tuple[float, ...] = ()
    """One for each layer, or none: all 1."""
    form: Literal["cosine", "projection"] = "cosine"
    """Which of the two."""
    targets: tuple[float, ...] = ()
    """One for each layer, or none: all 1."""
    scale: float = -2.0
    """a, of the projection form."""
    stability: float = 0.0
    """Weight of that term of the projection form."""
    token: Literal["last", "instruction"] = "last"
    """Where e is read: at the prompt's last token, or at the last one of the request, slots
    included (where arXiv 2507.11878 finds harmfulness)."""

    def bind(self, model: Model, prompt: Prompt, artefact: Artefact) -> Bound:
        """Bind to the directions of `layers`; the projection form runs the prompt without slots.

        Raises:
            BadInput: not as many weights or targets as layers, a target outside 0..1, or an
                unknown form.
            KeyError: the artefact lacks a layer's direction.
        """
        if not all(0 <= target <= 1 for target in self.targets):
            raise BadInput(f"steering targets {self.targets} leave 0..1, as cosines cannot")
        sites = _sites(self.layers, prompt.roles, self.token)
        directions = _stacked(artefact, "direction", self.layers).to(model.device)
        directions = directions / directions.norm(dim=1, keepdim=True)
        weights = _each(self.weights, self.layers, "weights").to(model.device)
        if self.form == "cosine":
            targets = _each(self.targets, self.layers, "targets").to(model.device)
            return _BoundCosine(sites, directions, weights, targets)
        if self.form == "projection":
            start = unperturbed(model, prompt, self.layers, self.token)
            return _BoundProjection(sites, directions, weights, start, self.scale, self.stability)
        raise BadInput(f"steering form '{self.form}'; valid: cosine, projection")


@dataclass(frozen=True, eq=False)
class _BoundCosine(_AtSites):
    directions: Tensor
    """(K, D) unit"""
    weights: Tensor
    """(K,)"""
    targets: Tensor
    """(K,)"""

    def __call__(self, trace: Trace) -> Tensor:
        cosines = cosine_similarity(_states(trace, self.sites), self.directions, dim=-1)
        return (self.weights * (self.targets + cosines) ** 2).sum(1)


@dataclass(frozen=True, eq=False)
class _BoundProjection(_AtSites):
    directions: Tensor
    """(K, D) unit"""
    weights: Tensor
    """(K,)"""
    start: Tensor
    """(K, D) activations of the conversation without slots"""
    scale: float
    stability: float

    def __call__(self, trace: Trace) -> Tensor:
        states = _states(trace, self.sites)
        along, before = ((x * self.directions).sum(-1) for x in (states, self.start))
        moved = states - self.start
        # orth(e) - orth(e*) = (e - e*) - <e - e*, r> r, whose square is that of a right triangle.
        aside = moved.pow(2).sum(-1) - (along - before).pow(2)
        distance = ((1 + self.scale) * before - along).pow(2) + self.stability * aside
        return (self.weights * distance / self.start.pow(2).sum(-1)).sum(1)


@dataclass(frozen=True)
class SubspaceNorm(Objective):
    """Weighted sum over layers of |U (e - m)|^2, in units of what harmful prompts have.

    e is `resid_post` at the last token, m the mean of harmless prompts, and the rows of U (R, D)
    are orthonormal. Over |e - m|^2 this would be the squared cosine of the principal angle between
    the line of e - m and the subspace, points of two Grassmannians. That is undefined at m itself,
    where the search should end, so the unit is a number: 1 is what harmful training prompts have in
    the mean, 0 an activation without any part in the subspace. The artefact holds `basis.<layer>`
    (R, D), `middle.<layer>` (D,) and `unit.<layer>` () for each layer.
    """

    layers: tuple[int, ...]
    weights: tuple[float, ...] = ()
    """One for each layer, or none: all 1."""

    def bind(self, model: Model, prompt: Prompt, artefact: Artefact) -> Bound:
        """Bind to the subspaces of `layers`.

        Raises:
            BadInput: not as many weights as layers.
            KeyError: the artefact lacks a layer's subspace.
        """
        basis, middle, unit = (
            _stacked(artefact, name, self.layers).to(model.device)
            for name in ("basis", "middle", "unit")
        )
        weights = _each(self.weights, self.layers, "weights").to(model.device)
        return _BoundNorm(_sites(self.layers, prompt.roles), basis, middle, weights / unit)


@dataclass(frozen=True, eq=False)
class _BoundNorm(_AtSites):
    basis: Tensor
    """(K, R, D), rows orthonormal"""
    middle: Tensor
    """(K, D)"""
    weights: Tensor
    """(K,)"""

    def __call__(self, trace: Trace) -> Tensor:
        away = _states(trace, self.sites) - self.middle
        parts = torch.einsum("krd,bkd->bkr", self.basis, away)
        return (self.weights * parts.square().sum(-1)).sum(1)


@dataclass(frozen=True)
class LatentLoss(Objective):
    """Weighted sum over layers of sum_r s_r max(0, z_r)^2, over sparse latents that refuse.

    z = F e + o are pre-activations of an autoencoder's latents on a scale where the mean of harmful
    training prompts is 1 and that of harmless ones 0, whichever sign refuses, and e is `resid_post`
    at the last token. What lies beyond 0 is on the side of acceptance and costs nothing. The
    artefact holds `latents.<layer>` (R, D) for F, `offsets.<layer>` (R,) for o, and
    `shares.<layer>` (R,) for s for each layer.
    """

    layers: tuple[int, ...]
    weights: tuple[float, ...] = ()
    """One for each layer, or none: all 1."""

    def bind(self, model: Model, prompt: Prompt, artefact: Artefact) -> Bound:
        """Bind to the latents of `layers`.

        Raises:
            BadInput: not as many weights as layers.
            KeyError: the artefact lacks a layer's latents.
        """
        rows, offsets, shares = (
            tuple(artefact.tensors[f"{name}.{layer}"].to(model.device) for layer in self.layers)
            for name in ("latents", "offsets", "shares")
        )
        weights = _each(self.weights, self.layers, "weights").to(model.device)
        return _BoundLatents(_sites(self.layers, prompt.roles), rows, offsets, shares, weights)


@dataclass(frozen=True, eq=False)
class _BoundLatents(_AtSites):
    rows: tuple[Tensor, ...]
    """(R, D) each"""
    offsets: tuple[Tensor, ...]
    """(R,) each"""
    shares: tuple[Tensor, ...]
    """(R,) each"""
    weights: Tensor
    """(K,)"""

    def __call__(self, trace: Trace) -> Tensor:
        states = _states(trace, self.sites)
        total = torch.zeros(len(states), device=states.device)
        for at, rows in enumerate(self.rows):
            refusing = (states[:, at] @ rows.T + self.offsets[at]).clamp_min(0)
            total = total + self.weights[at] * (self.shares[at] * refusing.square()).sum(1)
        return total


@dataclass(frozen=True)
class RefusalProjection(Objective):
    """max(0, <h, r> - m): how far the prompt goes along the refusal direction beyond harmless ones.

    h is the input of one block (`resid_pre`) at the last token, where arXiv 2406.11717 reads its
    directions. The artefact holds `direction` (D,), made a unit vector r here, and `projection` (),
    m: what harmless prompts have.
    """

    layer: int
    """The block."""

    def bind(self, model: Model, prompt: Prompt, artefact: Artefact) -> Bound:
        """Bind to the artefact's direction.

        Raises:
            KeyError: the artefact holds no `direction` or no `projection`.
        """
        direction = artefact.tensors["direction"].float().to(model.device)
        site = Site(self.layer, "resid_pre").at(len(prompt.ids))
        allowed = artefact.tensors["projection"].to(model.device)
        return _BoundRefusal(site, direction / direction.norm(), allowed)


@dataclass(frozen=True, eq=False)
class _BoundRefusal(Bound):
    site: Site
    direction: Tensor
    """(D,) unit"""
    allowed: Tensor
    """()"""

    @property
    def reads(self) -> tuple[Site, ...]:
        return (self.site,)

    @property
    def opening(self) -> Bound:
        """Itself: it reads the prompt's last token."""
        return self

    def __call__(self, trace: Trace) -> Tensor:
        along = _states(trace, (self.site,))[:, 0] @ self.direction
        return (along - self.allowed).clamp_min(0)


def unperturbed(model: Model, prompt: Prompt, layers: Sequence[int], token: str = "last") -> Tensor:
    """(K, D) float32 `resid_post` of the conversation without its slots.

    Args:
        model: the model.
        prompt: the conversation.
        layers: K blocks.
        token: as in `SteeringLoss`.
    """
    messages = tuple(Message(m.role, m.content.replace(SLOT, "")) for m in prompt.messages)
    ids, roles = model.chat.tokens(messages)
    sites = _sites(layers, roles, token)
    with torch.no_grad():
        trace = model.trace(ids.unsqueeze(0), sites, roles=roles)
    return _states(trace, sites)[0]


def _sites(layers: Sequence[int], roles: Tensor, token: str = "last") -> tuple[Site, ...]:
    """Outputs of the blocks at one token of a conversation with `roles` (T,)."""
    at = len(roles) - 1
    if token == "instruction":
        at = int((roles == INSTRUCTION).nonzero()[-1])
    return tuple(Site(layer, "resid_post", (at,)) for layer in layers)


def _states(trace: Trace, sites: Sequence[Site]) -> Tensor:
    """(B, K, D) float32 activations at one position of each site."""
    return torch.stack([trace[site][:, 0] for site in sites], dim=1).float()


def _stacked(artefact: Artefact, name: str, layers: Sequence[int]) -> Tensor:
    return torch.stack([artefact.tensors[f"{name}.{layer}"] for layer in layers])


def _each(values: Sequence[float], layers: Sequence[int], what: str) -> Tensor:
    if values and len(values) != len(layers):
        raise BadInput(f"{len(values)} {what} for {len(layers)} layers; give one for each layer")
    return torch.tensor(values or [1.0] * len(layers))
