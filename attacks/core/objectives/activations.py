"""Objectives over residual-stream activations: distances to a subspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import softplus

from attacks.core.artefact import Artefact
from attacks.core.objectives.base import Bound, Objective
from attacks.core.prompt import Prompt
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
