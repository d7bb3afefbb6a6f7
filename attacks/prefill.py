"""Prefill: the attacker writes the first words of the answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Generator

from attacks.attack import Artefact, Attack, Behavior, State, Step, ThreatModel
from attacks.core.errors import BadInput
from attacks.core.prompt import Message

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class Prefill(Attack):
    """Prefills the assistant's turn with the behaviour's target (Vega et al., arXiv 2312.12321).

    The model continues from there, as with interfaces that let a caller write the beginning of the
    answer. Only what the model adds is judged: the prefill is the attacker's own, and must not
    count as compliance. A record keeps it in `openings`.
    """

    name: ClassVar[str] = "prefill"
    summary: ClassVar[str] = (
        "prefills the answer with the affirmative target, and the model continues"
    )
    threat_model: ClassVar[ThreatModel] = ThreatModel.PREFILL
    searches: ClassVar[bool] = False

    text: str | None = None
    """Text of the prefill; none: the behaviour's target."""
    words: int = 0
    """How many words of it; 0: all."""

    def __post_init__(self) -> None:
        if self.words < 0:
            raise BadInput(f"prefill: words={self.words}: must be at least 0 (0: all)")
        if self.text is not None and not self.text.strip():
            raise BadInput("prefill: text is blank; give the words that the answer begins with")

    def opening(self, behavior: Behavior) -> str:
        """The words of the prefill.

        Surrounding white space is removed: templates strip it, and a token that begins with a
        space, as most words do, could not follow one.
        """
        words = (self.text or behavior.affirmative).strip()
        return " ".join(words.split()[: self.words]) if self.words else words

    def run(
        self,
        model: Model,
        behavior: Behavior,
        *,
        artefact: Artefact,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[Step]:
        """One step: the plain conversation with the answer opened.

        Raises:
            BadInput: the chat template does not let an answer be gone on with.
        """
        opened = (
            *model.conversation(behavior.text),
            Message("assistant", self.opening(behavior)),
        )
        model.chat.render(opened)
        yield Step((opened,))
