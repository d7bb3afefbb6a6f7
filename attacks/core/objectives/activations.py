"""Objectives over residual-stream activations: distances to a subspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import softplus

from attacks.core.artefact import Artefact
from attacks.core.objectives.base import Bound, Objective
from attacks.core.prompt import SLOT, Prompt
from attacks.core.sites import Site, Trace

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class ProbeLoss(Objective):
    """Sum over layers of -log P(harmless), by the linear probes in the artefact.

    Subspace rerouting with probes (arXiv 2503.06269, section 3): `resid_post` at the last token,
    P = sigmoid(w . x + b), label 1 for harmless as in the authors' code (the printed sign is the
    other one). The artefact holds `weight.<layer>` (D,) and `bias.<layer>` () for each layer.
    """

    layers: tuple[int, ...]

    def bind(self, model: Model, prompt: Prompt, artefact: Artefact) -> Bound:
        """Bind to the probes of `layers`; KeyError if the artefact lacks one."""
        tensors = artefact.tensors
        return _BoundProbe(
            tuple(Site(layer, "resid_post").at(len(prompt.ids)) for layer in self.layers),
            torch.stack([tensors[f"weight.{layer}"] for layer in self.layers]).to(model.device),
            torch.stack([tensors[f"bias.{layer}"] for layer in self.layers]).to(model.device),
        )


@dataclass(frozen=True)
class Stability(Objective):
    """Mean over layers of |orth(x) - orth(x*)|^2 / |orth(x*)|^2: keeps what else the prompt says.

    x* is the last token's state of the prompt without its slots, orth() what is left of a state
    without its component along the layer's probe. The stability term of subspace rerouting
    (arXiv 2503.06269, section 3.2, where it stands beside the steering loss): without it a search
    may well reach the harmless side by making the model think of another request.
    """

    layers: tuple[int, ...]

    def bind(self, model: Model, prompt: Prompt, artefact: Artefact) -> Bound:
        """Bind to the states of the prompt without slots; KeyError if a probe is missing."""
        whole = tuple(
            message._replace(content=message.content.replace(SLOT, ""))
            for message in prompt.messages
        )
        ids, roles = model.chat.tokens(whole)
        weight = torch.stack([artefact.tensors[f"weight.{layer}"] for layer in self.layers])
        unit = torch.nn.functional.normalize(weight, dim=1).to(model.device)
        sites = tuple(Site(layer, "resid_post") for layer in self.layers)
        reads = [site.at(len(ids)) for site in sites]
        with torch.no_grad():
            trace = model.trace(ids.unsqueeze(0), reads, roles=roles)
        states = torch.stack([trace[read][0, 0] for read in reads]).float()
        return _BoundStability(
            tuple(site.at(len(prompt.ids)) for site in sites), unit, _without(states, unit)
        )


@dataclass(frozen=True, eq=False)
class _BoundStability(Bound):
    sites: tuple[Site, ...]
    unit: Tensor
    """(K, D)"""
    before: Tensor
    """(K, D) orthogonal parts of the undisturbed states."""

    @property
    def reads(self) -> tuple[Site, ...]:
        return self.sites

    def __call__(self, trace: Trace) -> Tensor:
        states = torch.stack([trace[site][:, 0] for site in self.sites], dim=1).float()
        moved = (_without(states, self.unit) - self.before).square().sum(-1)
        return (moved / self.before.square().sum(-1)).mean(1)


def _without(states: Tensor, unit: Tensor) -> Tensor:
    """States (..., K, D) less their components along `unit` (K, D)."""
    return states - (states * unit).sum(-1, keepdim=True) * unit


@dataclass(frozen=True, eq=False)
class _BoundProbe(Bound):
    sites: tuple[Site, ...]
    weight: Tensor
    """(K, D)"""
    bias: Tensor
    """(K,)"""

    @property
    def reads(self) -> tuple[Site, ...]:
        return self.sites

    def __call__(self, trace: Trace) -> Tensor:
        states = torch.stack([trace[site][:, 0] for site in self.sites], dim=1).float()
        scores = (states * self.weight).sum(-1) + self.bias
        # -log sigmoid(z) = softplus(-z), without the saturation of the two-step form.
        return softplus(-scores).sum(1)
