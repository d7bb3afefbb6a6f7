"""Objectives over next-token distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import cross_entropy

from attacks.core.artefact import Artefact
from attacks.core.errors import BadInput
from attacks.core.objectives.base import Bound, Objective
from attacks.core.prompt import Prompt
from attacks.core.sites import Site, Trace

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class TargetCrossEntropy(Objective):
    """Mean over target tokens of -log p(token | what precedes it) (arXiv 2307.15043, eq. 2)."""

    def bind(self, model: Model, prompt: Prompt, artefact: Artefact) -> Bound:
        """Bind to the prompt's target.

        Raises:
            BadInput: the prompt has no target.
        """
        if len(prompt.target_ids) == 0:
            raise BadInput("a target loss needs a prompt with a target")
        first = len(prompt.ids) - 1
        positions = tuple(range(first, first + len(prompt.target_ids)))
        return _BoundTarget(Site(-1, "logits", positions), prompt.target_ids)


@dataclass(frozen=True, eq=False)
class _BoundTarget(Bound):
    site: Site
    target_ids: Tensor

    @property
    def reads(self) -> tuple[Site, ...]:
        return (self.site,)

    def __call__(self, trace: Trace) -> Tensor:
        logits = trace[self.site].float()
        rows, length, _ = logits.shape
        wanted = self.target_ids.to(logits.device).expand(rows, length)
        # cross_entropy takes the classes second: (B, V, G).
        losses = cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
        return losses.mean(1)
