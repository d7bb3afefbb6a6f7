"""The judge contract, and judges by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from attacks.core.behavior import Behavior

Label = Literal["refused", "deflected", "complied", "knows"]


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one completion."""

    success: bool | None
    """None: cannot tell (no reference to compare with, say)."""
    label: Label
    score: float | None = None


class Judge(ABC):
    """Says whether a completion answers a behaviour. Local and deterministic ones may stop runs."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def judge(self, behavior: Behavior, completion: str, *, openers: Sequence[str]) -> Verdict:
        """The verdict; `openers` are the refusal openers learned from the model, normalised.

        `behavior.target` is what the attack wanted the answer to begin with.
        """
