"""Greedy coordinate gradient and its successors: suffixes optimised for an affirmative answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Generator, Tensor

from attacks.attack import Artefact, Behavior, Pursuit, SuffixAttack
from attacks.core.errors import BadInput
from attacks.core.objectives import LossOptions, Objective, RefusalOpeners, RefusalProjection
from attacks.core.reading.states import last_token, next_token_log_probs
from attacks.core.refusals.checked_direction import find_checked_direction
from attacks.core.refusals.directions import RefusalDirection
from attacks.core.refusals.openers import refusal_tokens
from attacks.core.refusals.own_answers import OwnAnswers, fit_own_answers
from attacks.core.search import CoordinateSearch, Moves, ProbeSampling
from attacks.core.sites import Site

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class GCG(SuffixAttack):
    """GCG (Zou et al. 2023, arXiv 2307.15043) with multi-position swaps and a buffer.

    With buffer=1 it never accepts a worse suffix. The published setting is steps=500, width=512,
    topk=256, slots=20, buffer=0. Groups of options hold the changes of later work; they can be
    combined, and with their defaults the search is the plain one.
    """

    name: ClassVar[str] = "gcg"
    summary: ClassVar[str] = (
        "greedy coordinate gradient: optimises a suffix for an affirmative answer"
    )

    loss: LossOptions = field(default_factory=LossOptions)
    """Which loss of the target is minimised."""
    moves: Moves = field(default_factory=Moves)
    """How candidates are drawn and merged."""
    draft: ProbeSampling = field(default_factory=ProbeSampling)
    """A smaller model that chooses which candidates are evaluated."""

    def __post_init__(self) -> None:
        self.search()  # Numbers that do not go together are refused before anything runs.

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Load the draft model, where one is named; nothing is fitted.

        Raises:
            BadInput: a draft that does not load.
        """
        return Artefact(data=self.draft.fitted(model))

    def pursuit(self, model: Model, behavior: Behavior, artefact: Artefact) -> Pursuit:
        """The behaviour's own target."""
        return Pursuit(self.loss.objective(), behavior.affirmative, drafted=self.loss.target())

    def search(self) -> CoordinateSearch:
        """The numbers of the search, with the moves."""
        return replace(super().search(), moves=self.moves)

    def drafting(self) -> ProbeSampling:
        """Probe sampling, where a draft is named."""
        return self.draft


@dataclass(frozen=True)
class RefusalGCG(GCG):
    """GCG (arXiv 2307.15043) that also targets the model's own way of refusing.

    The refusal direction is that of arXiv 2406.11717; the combination is this suite's.
    Refusal openers and the refusal direction are fitted on training prompts; both terms are bounded
    below, so neither can outweigh the target forever. target="own" optimises for what the model
    itself answers with the direction ablated, instead of the behaviour's target.
    """

    name: ClassVar[str] = "gcg-refusal"
    summary: ClassVar[str] = "GCG that also suppresses the model's own refusal"
    needs_train: ClassVar[bool] = True

    suppress: float = 1.0
    """Weight of `RefusalOpeners`."""
    project: float = 0.0
    """Weight of `RefusalProjection`."""
    target: Literal["given", "own"] = "given"
    """The behaviour's target, or the model's own answer with the direction ablated."""
    tokens: int = 40
    """Maximum length of the model's own answer, in tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.suppress < 0 or self.project < 0:
            raise BadInput("suppress and project are weights and must be at least 0")

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Find the openers and the direction; `data` holds the openers' texts and the layer.

        Raises:
            BadInput: fewer than four harmful or harmless behaviours.
        """
        harmful, harmless = ([b.text for b in train if b.harmful == flag] for flag in (True, False))
        best = find_checked_direction(model, train, rng=rng, last_only=True)
        found = best.found
        openers = refusal_tokens(
            *(next_token_log_probs(model, texts) for texts in (harmful, harmless)), most=8
        )
        tensors = {
            "token_ids": openers,
            "direction": found.direction,
            "projection": _projection(model, harmless, found),
        }
        texts = model.chat.decode([[token] for token in openers.tolist()])
        data = {"openers": texts, "layer": found.layer, **self.draft.fitted(model)}
        if self.target == "given":
            return Artefact(tensors, data)
        own = fit_own_answers(model, train, best, rng=rng)
        return Artefact({**tensors, **own.tensors}, {**data, **own.data}, check=own.check)

    def pursuit(self, model: Model, behavior: Behavior, artefact: Artefact) -> Pursuit:
        """The target, with the terms whose weight is above 0."""
        objective: Objective = self.loss.objective()
        if self.suppress:
            objective = objective + self.suppress * RefusalOpeners()
        if self.project:
            objective = objective + self.project * RefusalProjection(int(artefact.data["layer"]))
        target, source = behavior.affirmative, ""
        if self.target == "own":
            own = OwnAnswers.of(artefact.tensors, artefact.data, model.n_layers)
            target, source = own.target(model, behavior, tokens=self.tokens)
        return Pursuit(objective, target, drafted=self.loss.target(), source=source)


def _projection(model: Model, harmless: Sequence[str], found: RefusalDirection) -> Tensor:
    """() mean of <h, r> over harmless prompts at the block's input, r of length 1."""
    site = Site(found.layer, "resid_pre")
    states = last_token(model, harmless, [site])[site]
    along: Tensor = states @ found.direction / torch.linalg.vector_norm(found.direction)
    return along.mean()
