"""Control-token steering: set the token with which the model opens its answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Generator

from attacks.attack import Artefact, Behavior, ChangeAttack
from attacks.core.errors import BadInput
from attacks.core.interventions import Intervention, SuppressTokens
from attacks.core.refusals.control import (
    Binary,
    ControlTokens,
    FirstToken,
    Force,
    PerCategory,
    Rule,
    Sum,
    find_control_tokens,
)
from attacks.core.weights import Change

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class ControlTokenSteering(ChangeAttack):
    """The test-time control of arXiv 2412.06748, section 3, turned against the model.

    For models that were trained to open every answer with a control token. `refusal-tokens` is
    for all others.
    """

    name: ClassVar[str] = "control-tokens"
    summary: ClassVar[str] = (
        "sets the control token with which the model was trained to open answers"
    )

    mode: Literal["force", "threshold", "category", "sum", "bias"] = "force"
    """force: always the same token. threshold: refuse if p(refuse) reaches it (below zero: reaches
    p(respond)), for models with one refusal token. category: a threshold on the likeliest
    category, if it is one of `categories`. sum: one on their sum. bias: on their logits."""
    direction: Literal["suppress", "induce"] = "suppress"
    """What to do with refusals; applies to the forced token, the bias, and default thresholds."""
    categories: tuple[str, ...] = ()
    """Categories to act on, by their tokens' names without brackets; none: all."""
    thresholds: tuple[float, ...] = ()
    """Thresholds on probabilities: one, or with `category` one for each of `categories`. None
    given: never reached (suppress) or always reached (induce)."""
    bias: float = 100.0
    """Shift of the logits of `categories`."""
    temperature: float = 1.0
    """Temperature of the probabilities that thresholds are compared with."""
    respond: str = ""
    """The token that opens answers, if it cannot be detected."""
    refuse: tuple[str, ...] = ()
    """The tokens that open refusals, if they cannot be detected."""

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Find the control tokens; `data` holds the categories' names.

        Raises:
            BadInput: a model without control tokens, or parameters that do not fit them.
        """
        found = find_control_tokens(model, respond=self.respond, refuse=self.refuse)
        self.intervention(found)
        ids = {"respond": torch.tensor([found.respond]), "refuse": torch.tensor(found.refuse)}
        return Artefact(ids, {"names": list(found.names)})

    def change(self, model: Model, artefact: Artefact) -> Change:
        """The intervention that sets the first token; see `intervention`."""
        tokens = ControlTokens(
            int(artefact.tensors["respond"]),
            tuple(artefact.tensors["refuse"].tolist()),
            tuple(artefact.data["names"]),
        )
        return self.intervention(tokens)

    def intervention(self, tokens: ControlTokens) -> Intervention:
        """What is done to the logits of the first token.

        Raises:
            BadInput: parameters that do not fit together or do not fit the model.
        """
        selected = tokens.indices(self.categories)
        ids = tuple(tokens.refuse[place] for place in selected)
        if not self.temperature > 0:
            raise BadInput(f"{self.name}: temperature {self.temperature:g} must be positive")
        if self.mode in ("force", "bias") and self.thresholds:
            raise BadInput(f"{self.name}: mode '{self.mode}' takes no thresholds")
        if self.mode == "bias":
            sign = -1 if self.direction == "suppress" else 1
            return SuppressTokens(torch.tensor(ids), sign * self.bias, 1)
        return FirstToken(self._rule(tokens, selected, ids), self.temperature)

    def _rule(self, tokens: ControlTokens, selected: tuple[int, ...], ids: tuple[int, ...]) -> Rule:
        if self.mode == "force":
            return Force((tokens.respond,) if self.direction == "suppress" else ids)
        bounds = self._bounds(len(ids))
        if self.mode == "category":
            return PerCategory(tokens, selected, bounds)
        if self.mode == "sum":
            return Sum(tokens, selected, bounds[0])
        if len(ids) > 1:
            raise BadInput(
                f"{self.name}: mode 'threshold' needs one refusal token and there are {len(ids)} "
                f"({', '.join(tokens.names)}); use 'category' or 'sum'"
            )
        return Binary(ids[0], tokens.respond, bounds[0])

    def _bounds(self, n: int) -> tuple[float, ...]:
        """As many thresholds as the mode has."""
        wanted = n if self.mode == "category" else 1
        given = self.thresholds or (math.inf if self.direction == "suppress" else 0.0,)
        if self.mode != "threshold" and min(given) < 0:
            raise BadInput(f"{self.name}: mode '{self.mode}' takes no threshold below zero")
        if len(given) not in (1, wanted):
            raise BadInput(f"{self.name}: {len(given)} thresholds for {wanted}")
        return given * wanted if len(given) == 1 else given
