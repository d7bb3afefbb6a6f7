"""The judge contract, and judges by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from attacks.core.behavior import Behavior

Label = Literal["refused", "garbled", "deflected", "complied", "knows"]


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one completion."""

    success: bool | None
    """None: cannot tell (no reference to compare with, say)."""
    label: Label
    score: float | None = None

    def of_garbled(self) -> Verdict:
        """The verdict once the answer is known to be garbled (`attacks.core.coherence`).

        Such an answer has not complied, whatever it opens with. Facts are facts, so `knows` stays.
        """
        if self.label in ("knows", "refused"):
            return self
        return replace(self, success=self.success and False, label="garbled")


class Judge(ABC):
    """Says whether a completion answers a behaviour. Local and deterministic ones may stop runs."""

    name: ClassVar[str]
    summary: ClassVar[str]
    takes_garbled: ClassVar[bool] = False
    """True: a garbled answer may be a success, since the judge says nothing of sense."""

    @abstractmethod
    def judge(self, behavior: Behavior, completion: str, *, openers: Sequence[str]) -> Verdict:
        """The verdict; `openers` are the refusal openers learned from the model, normalised.

        `behavior.target` is what the attack wanted the answer to begin with.
        """
