"""Objectives over next-token distributions."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from attacks.core.artefact import Artefact
from attacks.core.errors import BadInput
from attacks.core.objectives.base import Bound, Objective
from attacks.core.prompt import Prompt
from attacks.core.sites import Site, Trace

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class TargetLoss(Objective):
    """A loss of the logits that predict the target's tokens."""

    @property
    def least(self) -> float | None:
        """What a term cannot fall below; None where there is no such bound."""
        return None

    @abstractmethod
    def terms(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """(B, G) one term for each target token, from float32 logits (B, G, V), tokens (B, G)."""

    @abstractmethod
    def pool(self, terms: Tensor) -> Tensor:
        """(B,) losses from terms (B, G); rises with each of them."""

    def of(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """(B,) losses from float32 logits (B, G, V) and the target's tokens (B, G)."""
        return self.pool(self.terms(logits, wanted))

    def bind(self, model: Model, prompt: Prompt, artefact: Artefact) -> Bound:
        """Bind to the prompt's target.

        Raises:
            BadInput: the prompt has no target.
        """
        if len(prompt.target_ids) == 0:
            raise BadInput("a target loss needs a prompt with a target")
        first = len(prompt.ids) - 1
        positions = tuple(range(first, first + len(prompt.target_ids)))
        return _BoundTarget(Site(-1, "logits", positions), prompt.target_ids, self)


@dataclass(frozen=True, eq=False)
class _BoundTarget(Bound):
    site: Site
    target_ids: Tensor
    loss: TargetLoss
    missing: int = 0
    """Target tokens after these, whose terms are taken to be the least that they can be."""

    @property
    def reads(self) -> tuple[Site, ...]:
        return (self.site,)

    @property
    def opening(self) -> Bound | None:
        """The loss of the first target token, which decides most often."""
        if self.loss.least is None or len(self.target_ids) == 1:
            return None
        site = Site(self.site.layer, self.site.name, self.site.positions[:1])
        return _BoundTarget(site, self.target_ids[:1], self.loss, len(self.target_ids) - 1)

    def __call__(self, trace: Trace) -> Tensor:
        logits = trace[self.site]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        rows, length, _ = logits.shape
        terms = self.loss.terms(logits, self.target_ids.to(logits.device).expand(rows, length))
        if self.missing:
            least = terms.new_full((rows, self.missing), self.loss.least or 0.0)
            terms = torch.cat([terms, least], dim=1)
        return self.loss.pool(terms)


@dataclass(frozen=True)
class TargetCrossEntropy(TargetLoss):
    """Mean over target tokens of -log p(token | what precedes it) (arXiv 2307.15043, eq. 2)."""

    @property
    def least(self) -> float:
        """Of -log p."""
        return 0.0

    def terms(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """(B, G) of -log p; never negative."""
        return _nll(logits, wanted)

    def pool(self, terms: Tensor) -> Tensor:
        """(B,) means."""
        return terms.mean(1)


@dataclass(frozen=True)
class TargetMellowmax(TargetLoss):
    """A soft maximum over the target's tokens, so that the worst of them counts most.

    mm(z) = (logsumexp(a z) - log G) / a (Asadi and Littman, arXiv 1612.05628), between the mean of
    z (small a) and its maximum (large a). nanoGCG's published code takes z to be minus the raw
    logit of each token (`on="logits"`), which a shift of all logits changes, although no
    probability moves; on token losses that cannot happen.
    """

    alpha: float = 1.0
    on: Literal["losses", "logits"] = "losses"

    def __post_init__(self) -> None:
        if self.alpha <= 0:
            raise BadInput(f"mellowmax with alpha={self.alpha}: must be above 0")
        if self.on not in ("losses", "logits"):
            raise BadInput(f"mellowmax on '{self.on}'; valid: losses, logits")

    @property
    def least(self) -> float | None:
        """Logits have no bound."""
        return 0.0 if self.on == "losses" else None

    def terms(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """(B, G) of -log p, or of minus the logits."""
        return _nll(logits, wanted) if self.on == "losses" else -_picked(logits, wanted)

    def pool(self, terms: Tensor) -> Tensor:
        """(B,) mellowmax."""
        return ((self.alpha * terms).logsumexp(1) - log(terms.shape[1])) / self.alpha


@dataclass(frozen=True)
class TargetMargin(TargetLoss):
    """Carlini and Wagner's loss: how far the likeliest other token is ahead of the target's.

    Mean over target tokens of max(max_{j != y} z_j - z_y, -margin) (arXiv 2410.15362, section 3;
    arXiv 1608.04644). Tokens that lead by the margin get no gradient any more.
    """

    margin: float = 1e-3

    def __post_init__(self) -> None:
        if self.margin < 0:
            raise BadInput(f"target margin {self.margin}: must be at least 0")

    @property
    def least(self) -> float | None:
        """Minus the margin."""
        return -self.margin

    def terms(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """(B, G), at least -margin."""
        others = logits.scatter(2, wanted.unsqueeze(2), float("-inf")).amax(2)
        return (others - _picked(logits, wanted)).clamp_min(-self.margin)

    def pool(self, terms: Tensor) -> Tensor:
        """(B,) means."""
        return terms.mean(1)


@dataclass(frozen=True)
class TargetMismatch(TargetLoss):
    """How many of the target's tokens are not the likeliest: 0 where greedy decoding says it.

    Piecewise constant, so it is looked at and never descended.
    """

    @property
    def least(self) -> float:
        """Of a count."""
        return 0.0

    def terms(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """(B, G) of 0 and 1."""
        return (logits.argmax(2) != wanted).float()

    def pool(self, terms: Tensor) -> Tensor:
        """(B,) counts."""
        return terms.sum(1)


@dataclass(frozen=True)
class RefusalOpeners(Objective):
    """-log(1 - P), with P the probability that the answer's first token opens a refusal.

    That is softplus of the refusal score (the log odds of P; arXiv 2406.11717, section 2.3), hence
    bounded below by 0, unlike log P. The artefact holds the openers' ids, `token_ids` (K,).
    """

    def bind(self, model: Model, prompt: Prompt, artefact: Artefact) -> Bound:
        """Bind to the artefact's openers.

        Raises:
            KeyError: the artefact holds none.
        """
        site = Site(-1, "logits", (len(prompt.ids) - 1,))
        return _BoundOpeners(site, artefact.tensors["token_ids"])


@dataclass(frozen=True, eq=False)
class _BoundOpeners(Bound):
    site: Site
    token_ids: Tensor

    @property
    def reads(self) -> tuple[Site, ...]:
        return (self.site,)

    @property
    def opening(self) -> Bound:
        """Itself: it reads what predicts the first token."""
        return self

    def __call__(self, trace: Trace) -> Tensor:
        logits = trace[self.site][:, 0].float()
        if len(self.token_ids) == 0:
            return logits.new_zeros(len(logits))
        ids = self.token_ids.to(logits.device)
        refusing = logits[:, ids].logsumexp(1)
        rest = logits.index_fill(1, ids, float("-inf")).logsumexp(1)
        return softplus(refusing - rest)


def _nll(logits: Tensor, wanted: Tensor) -> Tensor:
    """(B, G) of -log p."""
    return cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)


def _picked(logits: Tensor, wanted: Tensor) -> Tensor:
    """(B, G) logits of the target's tokens."""
    return logits.gather(2, wanted.unsqueeze(2)).squeeze(2)
