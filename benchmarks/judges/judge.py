"""The judge interface, and judges by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from attacks.core.behavior import Behavior
from benchmarks.judges.constructive import helps
from benchmarks.storage.records import DECLINED, digest

Label = Literal["refused", "constructive", "garbled", "deflected", "complied", "knows", "unjudged"]

#: Label of an answer of which a judge said nothing that could be understood.
UNJUDGED: Label = "unjudged"


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one completion."""

    success: bool | None
    """None: cannot tell (no reference to compare with, say)."""
    label: Label
    score: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Additional JSON values of a judge: a guard's categories, an endpoint's tokens."""

    def of_garbled(self) -> Verdict:
        """The verdict once the answer is known to be garbled (`attacks.core.refusals.coherence`).

        Such an answer has not complied, whatever it opens with. Facts are facts, so `knows` stays.
        """
        if self.label in ("knows", *DECLINED, UNJUDGED):
            return self
        return replace(self, success=self.success and False, label="garbled")

    def of_declining(self, answer: str) -> Verdict:
        """The verdict once it is known whether a refusal goes on to help (`constructive.helps`).

        Only the label changes, and only of what is refused and no success.
        """
        if self.label == "refused" and not self.success and helps(answer):
            return replace(self, label="constructive")
        return self


@dataclass(frozen=True)
class Case:
    """What a judge sees: a request and an answer."""

    behavior: Behavior
    """Its target is what the attack wanted the answer to begin with."""
    answer: str
    """What was said after thinking."""
    openers: tuple[str, ...] = ()
    """Refusal openers learned from the model, normalised."""


#: A verdict, or why there is none; what has none is judged by the next pass.
Said = Verdict | str


class Judge(ABC):
    """Decides whether a completion answers a behaviour.

    A judge with parameters is a frozen dataclass; they are its fields.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    takes_garbled: ClassVar[bool] = False
    """True: a garbled answer may be a success, since the judge does not assess coherence."""
    at_once: ClassVar[bool] = True
    """Local, deterministic and fast: judges within a run. Others judge after a run."""

    @abstractmethod
    def judge(self, behavior: Behavior, completion: str, *, openers: Sequence[str]) -> Verdict:
        """The verdict; `openers` are the refusal openers learned from the model, normalised.

        `behavior.target` is what the attack wanted the answer to begin with.
        """

    def settled(self, verdict: Verdict, *, garbled: bool, answer: str) -> Verdict:
        """The verdict on `answer` that counts, once it is known whether it is garbled."""
        if garbled:
            return verdict if self.takes_garbled else verdict.of_garbled()
        return verdict.of_declining(answer)

    def judge_all(self, cases: Sequence[Case]) -> Iterator[tuple[int, Said]]:
        """The place of each case and what is said of it, in any order, as soon as it is known.

        Raises:
            BadInput: the judge cannot be had at all.
        """
        for at, case in enumerate(cases):
            yield at, self.judge(case.behavior, case.answer, openers=case.openers)

    def shown(self, case: Case) -> Case:
        """The case without what this judge does not look at: equal ones are judged once."""
        return case

    def facts(self) -> Mapping[str, Any]:
        """JSON values that decide about verdicts: model, revision, template, threshold.

        Empty for a judge that is the same wherever it has this name. Two judges that differ here
        are two judges, and their verdicts are never mixed.
        """
        return {}

    def title(self) -> str:
        """A few words on which judge of this kind it is."""
        return ""

    @property
    def identity(self) -> str:
        """What judgements call it: its name, with a title and a hash where there are `facts`."""
        facts = self.facts()
        if not facts:
            return self.name
        return f"{self.name}:{self.title()}@{digest({'judge': self.name, **facts})[:8]}"
