"""What interventions cost harmless requests: how far they move the model's answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from attacks.core.behavior import Behavior
from attacks.core.model import Model
from attacks.core.reading.answers import answers
from attacks.core.reading.dialogues import Dialogue, answer_kl
from attacks.core.reading.states import first_token_kl
from attacks.core.refusals.openers import opener_tokens, opens_with_refusal
from attacks.core.refusals.verdicts import TOKENS
from attacks.core.weights import Change


class Damage(NamedTuple):
    """KL(as it is || changed) on one harmless request; see `Record`."""

    first_token: float
    """Nats."""
    answer: float | None
    """Nats a token of the plain model's own answer; None where that is empty."""


class DamageMeter:
    """Measures interventions on requests; the plain model's answers are generated once."""

    def __init__(self, model: Model, openers: Sequence[str]) -> None:
        """Compare with `model` as it is, which refuses with `openers` (normalised)."""
        self._model = model
        self._openers = openers
        self._plain: dict[str, str | None] = {}

    def __call__(self, behavior: Behavior, interventions: Sequence[Change]) -> Damage | None:
        """What the interventions do to the plain request; None without any, or if it is harmful.

        None also where the model as it is refuses: to answer that is no damage. An opening of the
        attack's is left out: behind it the next token is all but certain. One request at a time,
        since the shape of a batch would show in the last digits.
        """
        if not interventions or behavior.harmful:
            return None
        text = behavior.text
        if text not in self._plain:
            length = max(TOKENS, opener_tokens(self._openers))
            (said,) = answers(self._model, [text], tokens=length)
            self._plain[text] = None if opens_with_refusal(said, self._openers) else said
        answer = self._plain[text]
        if answer is None:
            return None
        first = first_token_kl(self._model, self._model.conversation(text), interventions)
        if not answer:
            return Damage(first, None)
        dialogue = Dialogue.of(self._model, text, answer)
        return Damage(first, answer_kl(self._model, dialogue, interventions))
