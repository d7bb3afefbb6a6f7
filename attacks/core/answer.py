"""What a model said, and whether it came to an end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self


class Answer(str):
    """An answer's text, which also knows whether the limit of new tokens cut it."""

    ended: bool
    """False: it reached the limit of new tokens before its end."""

    def __new__(cls, text: str, *, ended: bool = True) -> Self:
        """An answer."""
        made = super().__new__(cls, text)
        made.ended = ended
        return made

    def after(self, opening: str) -> Answer:
        """This answer as what follows `opening`."""
        return Answer(opening + self, ended=self.ended)


def silent(answer: str) -> bool:
    """Whether an answer ends before anything is said, as models may refuse.

    One that the limit of new tokens cut (in its thinking, say) has not ended.
    """
    return isinstance(answer, Answer) and answer.ended and not answer.strip()


def cut(answers: Sequence[str]) -> tuple[bool, ...]:
    """Whether the limit of new tokens cut each answer; nothing where that is not known of all."""
    known = [answer for answer in answers if isinstance(answer, Answer)]
    return tuple(not answer.ended for answer in known) if len(known) == len(answers) else ()
