"""Refusal-token steering: make the words that open a refusal unlikely, or likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Generator

from attacks.attack import Artefact, Behavior, ChangeAttack
from attacks.core.interventions import SuppressTokens
from attacks.core.reading.states import next_token_log_probs
from attacks.core.refusals.openers import refusal_tokens
from attacks.core.refusals.verdicts import hold_out
from attacks.core.weights import Change

if TYPE_CHECKING:
    from attacks.core.model import Model


_NONE = "answers to harmful and harmless prompts open alike, so no token is suppressed"


@dataclass(frozen=True)
class RefusalTokens(ChangeAttack):
    """Logit bias against the model's own refusal openers over the first decoding steps.

    Refusal tokens (arXiv 2412.06748) are control tokens that a model was trained with, which
    `control-tokens` handles; here the natural ones are found instead, from the first-token
    distribution on harmful against harmless training prompts.
    """

    name: ClassVar[str] = "refusal-tokens"
    summary: ClassVar[str] = (
        "suppresses the model's own refusal openers in the first tokens of its answer"
    )
    needs_train: ClassVar[bool] = True

    tokens: int = 8
    """Maximum number of openers."""
    first: int = 3
    """Decoding steps at which they are suppressed."""
    bias: float = -100.0
    """Added to their logits; with the opposite sign where refusals are induced."""
    direction: Literal["suppress", "induce"] = "suppress"
    """Inducing acts on the first decoding step only, where the openers were found: repeated, they
    would not make a refusal."""

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Find the openers; `data` holds their texts.

        A model that opens its answers to harmful and harmless prompts alike has none, and is then
        asked as it is; `check` says so.

        Raises:
            BadInput: too few training behaviours.
        """
        fit, held_out = hold_out(train, rng, who=self.name)
        harmful, harmless = (
            next_token_log_probs(model, [b.text for b in fit if b.harmful == flag])
            for flag in (True, False)
        )
        ids = refusal_tokens(harmful, harmless, most=self.tokens)
        check = {} if len(ids) else {"verdict": "failed", "faults": [_NONE]}
        data = {"tokens": model.chat.decode([[i] for i in ids.tolist()])}
        artefact = Artefact({"token_ids": ids}, data, check=check)
        if check or self.direction == "induce":
            return artefact
        return self.checked(model, artefact, fit, held_out)

    def change(self, model: Model, artefact: Artefact) -> Change:
        """The openers suppressed, or induced."""
        bias, first = (self.bias, self.first) if self.direction == "suppress" else (-self.bias, 1)
        return SuppressTokens(artefact.tensors["token_ids"], bias, first)
