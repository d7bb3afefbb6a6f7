"""Objectives over attention heads: draw them to the slots, or away from the request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from attacks.core.artefact import Artefact
from attacks.core.errors import BadInput
from attacks.core.objectives.base import Bound, Objective
from attacks.core.prompt import INSTRUCTION, Prompt
from attacks.core.sites import Site, Trace

if TYPE_CHECKING:
    from attacks.core.model import Model

Kind = Literal["dazzle", "dazzle-score", "ablation", "full-ablation"]

_SITE = {
    "dazzle": "pattern",
    "dazzle-score": "scores",
    "ablation": "pattern",
    "full-ablation": "z",
}


@dataclass(frozen=True)
class AttentionLoss(Objective):
    """Subspace rerouting by attention (arXiv 2503.06269 and its authors' code), over some heads.

    The queries q are the last R = `last` positions of the prompt, P is the pattern, S the scores
    before the mask, z a head's output before the output projection. Summed over the heads:

    - `dazzle`: R - sum_q sum_{k in slots} P[q, k], between 0 and R. The heads look at the slots.
    - `dazzle-score`: -sum_q sum_{k in slots} S[q, k], slots up to q. Unbounded: a softmax ignores
      a constant, so scores can grow for ever without moving the pattern.
    - `ablation`: sum_q sum_{k in request} P[q, k], slots left out of the request. The end of the
      prompt stops looking at what was asked.
    - `full-ablation`: sum_q ||z[q]||_2. The heads fall silent.
    """

    heads: tuple[tuple[int, int], ...]
    """(layer, head) of each."""
    kind: Kind = "dazzle"
    """Which of the four."""
    last: int = 1
    """R."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            valid = ", ".join(get_args(Kind))
            raise BadInput(f"unknown kind of attention loss '{self.kind}'; valid: {valid}")
        if not self.heads or self.last < 1:
            raise BadInput("an attention loss needs at least one head and one last position")

    def bind(self, model: Model, prompt: Prompt, artefact: Artefact) -> Bound:
        """Bind to the slots, or the request, of `prompt`; the artefact is not looked at.

        Raises:
            BadInput: a head that the model does not have, more last positions than the prompt has,
                or no slots (`dazzle`, `dazzle-score`) or request (`ablation`) to look at.
        """
        count = model.structure.heads
        for layer, head in self.heads:
            if not (0 <= layer < model.n_layers and 0 <= head < count):
                raise BadInput(
                    f"model '{model.name}' has no head ({layer}, {head}): it has {model.n_layers} "
                    f"layers of {count} heads"
                )
        length = len(prompt.ids)
        if self.last > length:
            raise BadInput(f"a prompt of {length} tokens has no last {self.last} positions")
        queries = tuple(range(length - self.last, length))
        keys = prompt.slots
        if self.kind == "ablation":
            asked = prompt.roles == INSTRUCTION
            asked[prompt.slots] = False
            keys = asked.nonzero().squeeze(1)
        if self.kind != "full-ablation" and len(keys) == 0:
            raise BadInput(f"attention loss '{self.kind}' finds no positions to look at")
        by_layer: dict[Site, list[int]] = {}
        for layer, head in self.heads:
            by_layer.setdefault(Site(layer, _SITE[self.kind], queries), []).append(head)
        return _BoundAttention(self.kind, by_layer, queries, keys)


@dataclass(frozen=True, eq=False)
class _BoundAttention(Bound):
    kind: Kind
    heads: dict[Site, list[int]]
    queries: tuple[int, ...]
    keys: Tensor
    """(S,) positions looked at."""

    @property
    def reads(self) -> tuple[Site, ...]:
        return tuple(self.heads)

    def __call__(self, trace: Trace) -> Tensor:
        parts = [self._layer(trace[site], heads) for site, heads in self.heads.items()]
        return torch.stack(parts).sum(0)

    def _layer(self, activation: Tensor, heads: list[int]) -> Tensor:
        """(B,) from (B, R, H, K), or (B, R, H, d), of one layer."""
        chosen = activation[:, :, heads].float()
        if self.kind == "full-ablation":
            norms: Tensor = torch.linalg.vector_norm(chosen, dim=-1)
            return norms.sum((1, 2))
        seen = chosen[..., self.keys.to(chosen.device)]
        if self.kind == "dazzle-score":
            # Scores exist after the query too, where the mask makes them mean nothing.
            queries = torch.tensor(self.queries).unsqueeze(1)
            causal = (self.keys.cpu() <= queries).to(seen.device, seen.dtype)
            return -(seen * causal.unsqueeze(1)).sum((1, 2, 3))
        total = seen.sum((1, 2, 3))
        if self.kind == "ablation":
            return total
        return len(heads) * len(self.queries) - total


@dataclass(frozen=True)
class SlotAttention(Objective):
    """Minus the attention that the slots get from the last layer (AttnGCG, arXiv 2410.09040).

    -mean_{k in slots} A[k], with A averaged over the last layer's heads and over the positions that
    predict the target; between -1 / S and 0. The paper adds it to the target loss with weights from
    50 to 100. Its code ranks candidates by other positions than those it takes the gradient of;
    here both use the same.
    """

    def bind(self, model: Model, prompt: Prompt, artefact: Artefact) -> Bound:
        """Bind to the slots and the target of `prompt`; the artefact is not looked at.

        Raises:
            BadInput: a prompt without slots.
        """
        if prompt.n_slots == 0:
            raise BadInput("attention to slots needs a prompt with slots")
        first = len(prompt.ids) - 1
        queries = tuple(range(first, first + max(1, len(prompt.target_ids))))
        return _BoundSlotAttention(Site(model.n_layers - 1, "pattern", queries), prompt.slots)


@dataclass(frozen=True, eq=False)
class _BoundSlotAttention(Bound):
    site: Site
    slots: Tensor
    """(S,)"""

    @property
    def reads(self) -> tuple[Site, ...]:
        return (self.site,)

    def __call__(self, trace: Trace) -> Tensor:
        pattern = trace[self.site].float()
        return -pattern[..., self.slots.to(pattern.device)].mean((1, 2, 3))
