"""Perplexity filters: block requests that the model itself finds unlikely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from attacks.core.artefact import Artefact
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.objectives import Bound
from attacks.core.prompt import INSTRUCTION, Prompt
from attacks.core.shields import Check
from attacks.core.sites import Site, Trace
from benchmarks.defenses.defense import REFUSAL, Defense, texts_of
from benchmarks.defenses.thresholds import checked, halves, measured

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class Perplexity(Defense):
    """Blocks what is less likely than any harmless training request (arXiv 2309.00614, 2308.14132).

    The score is the mean over the request's tokens of -log p(token | what precedes it), in nats,
    and the largest such mean over `window` tokens in a row; it blocks if either is above its
    threshold. Unlike in the papers the language model is the defended model itself, and reads the
    request at its place in the conversation: a chat model has seen text there only.

    The penalty of a candidate is exact. Its gradient, which proposes candidates, goes through the
    context of later tokens and not through the token itself, whose share no embedding carries.
    """

    name: ClassVar[str] = "perplexity"
    summary: ClassVar[str] = "blocks requests that are unlikely, as a whole or in a window"
    adapts: ClassVar = "gradient"
    needs_train: ClassVar[bool] = True

    window: int = 10
    """Length of the window in tokens; 0: the whole request only."""
    quantile: float = 1.0
    """Quantile of harmless training requests; 1: the most unlikely of them."""
    slack: float = 0.1
    """Nats by which thresholds lie above that."""
    weight: float = 1.0
    """Weight of the penalty in attacks' losses."""
    margin: float = 0.1
    """Nats below the threshold at which the penalty begins."""

    def __post_init__(self) -> None:
        if self.window < 0:
            raise BadInput(f"perplexity: window={self.window}: must be at least 0")
        if not 0 < self.quantile <= 1:
            raise BadInput(f"perplexity: quantile={self.quantile}: must be above 0, at most 1")

    def fit(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Both thresholds, from half of the harmless requests; the others are the check.

        Raises:
            BadInput: too few behaviours.
        """
        rows, held = halves(train, rng=rng)
        scores = {
            kind: torch.tensor(
                measured(
                    model,
                    texts_of(rows, harmful=False),
                    partial(likelihood, window=window, threshold=0.0),
                ),
                dtype=torch.float64,
            )
            for kind, window in (("whole", 0), ("window", self.window))
        }
        thresholds = {
            kind: float(values.quantile(self.quantile)) + self.slack
            for kind, values in scores.items()
        }
        made = Artefact(data=thresholds)
        found = [
            measured(model, texts_of(held, harmful=kind), partial(self._excess, made))
            for kind in (False, True)
        ]
        return Artefact(data=thresholds, check=checked(*found))

    def around(self, model: Model, artefact: Artefact) -> Model:
        """A check in front of the model."""
        from attacks.core.model import ShieldedModel

        excess = partial(self._excess, artefact)
        check = Check(self.name, REFUSAL, self.weight, self.margin, excess)
        return ShieldedModel(model, [check])

    def _excess(self, artefact: Artefact, model: Model, prompt: Prompt) -> Bound:
        terms = [likelihood(model, prompt, window=0, threshold=artefact.data["whole"])]
        if self.window:
            windowed = artefact.data["window"]
            terms.append(likelihood(model, prompt, window=self.window, threshold=windowed))
        return _Highest(tuple(terms))


def likelihood(model: Model, prompt: Prompt, *, window: int, threshold: float) -> Bound:
    """How far the request's mean negative log-likelihood is above a threshold, in nats.

    Args:
        model: reads it.
        prompt: the conversation.
        window: tokens of a window, the unlikeliest of which counts; 0, or more than there are: all.
        threshold: nats a token.

    Raises:
        BadInput: no token of the request.
    """
    positions = [at for at in (prompt.roles == INSTRUCTION).nonzero().flatten().tolist() if at]
    if not positions:
        raise BadInput("no token of the prompt lies within the request; it is empty")
    return _Unlikely(
        Site(-1, "logits", tuple(at - 1 for at in positions)),
        Site(-1, "tokens", tuple(positions)),
        window if 0 < window < len(positions) else len(positions),
        threshold,
    )


@dataclass(frozen=True, eq=False)
class _Unlikely(Bound):
    logits: Site
    tokens: Site
    window: int
    threshold: float

    @property
    def reads(self) -> tuple[Site, ...]:
        return (self.logits, self.tokens)

    def __call__(self, trace: Trace) -> Tensor:
        logits, ids = trace[self.logits], trace[self.tokens]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        lost = cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none")
        means = lost.view(ids.shape).unfold(1, self.window, 1).mean(2)
        return means.amax(1) - self.threshold


@dataclass(frozen=True, eq=False)
class _Highest(Bound):
    terms: tuple[Bound, ...]

    @property
    def reads(self) -> tuple[Site, ...]:
        return tuple(dict.fromkeys(site for term in self.terms for site in term.reads))

    def __call__(self, trace: Trace) -> Tensor:
        return torch.stack([term(trace) for term in self.terms]).amax(0)
