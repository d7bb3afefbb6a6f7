"""Representational independence: whether ablating one direction leaves another as it was.

Orthogonal directions can still act on each other, since later blocks compute from what an earlier
ablation has left. Two directions are representationally independent if ablating either does not
change the cosine between the other and the residual stream (Wollschlaeger et al. 2025,
arXiv 2502.17420, section 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attacks.core.interventions import AblateDirection, Intervention
from attacks.core.reading.states import last_token
from attacks.core.sites import Site

if TYPE_CHECKING:
    from attacks.core.model import Model


@torch.no_grad()
def dependence(model: Model, directions: Tensor, texts: Sequence[str]) -> Tensor:
    """How much ablating each direction moves the cosines of the others.

    Args:
        model: the model.
        directions: (k, D) of any norm.
        texts: requests; read at their last token at the output of every block.

    Returns:
        (k, k) float32: at (i, j) the mean over requests and blocks of the absolute change of the
        cosine between the stream and direction i once direction j is ablated; 0 on the diagonal and
        everywhere for independent directions, at most 2.
    """
    units = torch.nn.functional.normalize(directions.float().cpu(), dim=1)

    def cosines(changes: Sequence[Intervention]) -> Tensor:
        """Cosines of shape (blocks, N, k)."""
        sites = [Site(layer, "resid_post") for layer in range(model.n_layers)]
        states = last_token(model, list(texts), sites, interventions=changes)
        rows = torch.stack([states[site].float().cpu() for site in sites])
        return torch.nn.functional.normalize(rows, dim=-1) @ units.T

    plain = cosines([])
    moved = torch.stack(
        [
            (cosines([AblateDirection(unit, model.n_layers)]) - plain).abs().mean((0, 1))
            for unit in units
        ],
        dim=1,
    )
    return moved.fill_diagonal_(0.0)
