"""Routers of mixtures of experts: their scores and gates as (B, T, E), and new ones put back.

In transformers 5 a router returns (scores, gates, indices), flattened over the batch: logits
(B T, E), the k largest of their softmax (B T, k), and whose they are (B T, k). The experts are
given the last two only. So changing `router` means to choose anew from the changed logits, and
changing `gates` to hand over the k largest of the changed gates. Families that choose otherwise
(sigmoid scores, a bias that counts for the choice but not for the gate, groups of experts) are
refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Generator, Tensor, nn

from attacks.core.errors import BadInput
from attacks.core.model.families import Structure, at_path

_ROWS = 64
#: Largest difference of gates that is put down to rounding.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 5e-3}


@dataclass(frozen=True)
class Selection:
    """How a router gets from logits (N, E) to gates: softmax, the k largest, perhaps normalised."""

    k: int
    normalised: bool
    """Whether the gates of each position sum to one; otherwise they are probabilities."""

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Gates (N, k), largest first, in float32, and the experts' indices (N, k)."""
        gates, indices = logits.float().softmax(-1).topk(self.k, dim=-1)
        if self.normalised:
            gates = gates / gates.sum(-1, keepdim=True)
        return gates, indices


def read(name: str, output: Any, rows: int) -> Tensor:
    """The site `name` (B, T, E) in a router's output for `rows` sequences B."""
    logits, gates, indices = output
    value: Tensor = logits if name == "router" else _dense(logits, gates, indices)
    return value.unflatten(0, (rows, -1))  # type: ignore[no-untyped-call, no-any-return]


def write(name: str, output: Any, value: Tensor, selection: Selection) -> tuple[Tensor, ...]:
    """A router's output with the site `name` replaced by `value` (B, T, E).

    Of changed gates the k largest reach the experts, as they are.
    """
    logits, gates, _ = output
    flat = value.flatten(0, 1)
    if name == "router":
        chosen, indices = selection.choose(flat)
        return flat.to(logits.dtype), chosen.to(gates.dtype), indices
    chosen, indices = flat.topk(selection.k, dim=-1)
    return logits, chosen.to(gates.dtype), indices


def _dense(logits: Tensor, gates: Tensor, indices: Tensor) -> Tensor:
    return torch.zeros_like(logits, dtype=gates.dtype).scatter(-1, indices, gates)


_known: WeakKeyDictionary[nn.Module, Selection] = WeakKeyDictionary()


def selection_of(model: nn.Module, structure: Structure, layer: int) -> Selection:
    """How the router of a block chooses, found by running it on random inputs.

    Raises:
        BadInput: a dense block, or a router that is not softmax and top-k.
    """
    router = at_path(model, structure.module_path(layer, "router"))
    if router not in _known:
        found = _find(router)
        if found is None:
            raise BadInput(
                f"{structure.family}: the router of block {layer} ({type(router).__name__}) is not "
                "the softmax and top-k of OLMoE, Qwen-MoE or Mixtral, so its choice of experts "
                "cannot be read or changed"
            )
        _known[router] = found
    return _known[router]


@torch.no_grad()
def _find(router: nn.Module) -> Selection | None:
    """The selection that gives what the router gives, or None."""
    weight = getattr(router, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    inputs = torch.randn(_ROWS, weight.shape[1], generator=Generator().manual_seed(0))
    try:
        # Not a call, which would run the hooks of a pass under way.
        output = router.forward(inputs.to(weight))
    except (TypeError, RuntimeError):
        return None
    if not (isinstance(output, tuple) and len(output) == 3):
        return None
    logits, gates, indices = output
    if logits.shape != (_ROWS, len(weight)) or gates.ndim != 2 or gates.shape != indices.shape:
        return None
    given = _dense(logits, gates, indices).float()
    for normalised in (True, False):
        selection = Selection(gates.shape[1], normalised)
        chosen, at = selection.choose(logits)
        error = (_dense(logits, chosen, at) - given).abs().max()
        if float(error) < _TOLERANCE.get(logits.dtype, 2e-2):
            return selection
    return None
