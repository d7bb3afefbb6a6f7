"""Where the slots are in a conversation, and what is said before the request."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.prompt import SLOT, Message, Messages

if TYPE_CHECKING:
    from attacks.core.model import Model

_PLACES = {
    "suffix": "{request}{slots}",
    "prefix": "{slots} {request}",
    "both": "{slots} {request}{slots}",
}
_MARKS = re.compile(r"(\{request\}|\{slots\})")


@dataclass(frozen=True)
class Layout:
    """The user's turns: with the defaults one, the request with a suffix."""

    place: str = "suffix"
    """suffix, prefix, both, or a template that holds `{request}` once and `{slots}` once or more,
    such as "Answer {slots} truthfully: {request}{slots}"; the slots are distributed evenly, with
    the remainder going to the first places."""
    before: tuple[str, ...] = ()
    """User messages of earlier turns, with the model's own greedy answers between them, so that the
    attacker still writes nothing but user turns."""
    answer_tokens: int = 32
    """Maximum length of these answers, in tokens."""

    def __post_init__(self) -> None:
        marks = _MARKS.findall(self.template)
        if marks.count("{request}") != 1 or "{slots}" not in marks:
            valid = ", ".join(_PLACES)
            raise BadInput(
                f"place '{self.place}'; valid: {valid}, or a template with {{request}} once and "
                "{slots} at least once"
            )
        if any(SLOT in text for text in (self.template, *self.before)):
            raise BadInput("place and earlier turns cannot hold the reserved character U+E000")
        if self.answer_tokens < 1:
            raise BadInput(f"answer_tokens={self.answer_tokens}: must be at least 1")

    @property
    def template(self) -> str:
        """The last user turn, with its marks."""
        return _PLACES.get(self.place, self.place)

    def conversation(self, model: Model, behavior: Behavior, slots: int) -> Messages:
        """The turns up to the request, with `slots` slots in the last one.

        Raises:
            BadInput: fewer slots than places for them, or a text with the reserved character.
        """
        if SLOT in behavior.text:
            raise BadInput(
                f"behaviour '{behavior.id}': its text holds the reserved character U+E000"
            )
        turns: Messages = (Message("system", model.system),) if model.system else ()
        for text in self.before:
            turns += (Message("user", text),)
            (answer,) = model.generate([turns], max_new_tokens=self.answer_tokens)
            turns += (Message("assistant", answer),)
        return (*turns, Message("user", self._filled(behavior.text, slots)))

    def _filled(self, request: str, slots: int) -> str:
        parts = _MARKS.split(self.template)
        places = parts.count("{slots}")
        if slots < places:
            raise BadInput(f"{slots} slots cannot be distributed over {places} places")
        counts = iter(slots // places + (at < slots % places) for at in range(places))
        return "".join(
            request if part == "{request}" else SLOT * next(counts) if part == "{slots}" else part
            for part in parts
        )
