"""A judge as a guard: requests or answers that it calls a success of an attack are blocked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Generator, Tensor

from attacks.core.artefact import Artefact
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.prompt import Messages, Prompt, last_user_message
from attacks.core.refusals.openers import GENERAL_OPENERS
from attacks.core.shields import Exchange, Shield, Shielded, Toll
from benchmarks.defenses.defense import Defense, settled
from benchmarks.judges.judge import Case, Judge, Verdict
from benchmarks.judges.registry import load_judge

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class GuardJudge(Defense):
    """Uses one of the suite's judges, such as a guard model, and blocks what it calls a success.

    On answers the judge sees request and answer, as it does when it judges. On prompts it sees the
    request in place of the answer too: what the model must not say, the user must not ask. Inputs
    without a verdict, or too long for the judge's prompt, pass.

    An adaptive attack adds the judge's score (or 1 for a success) of its best candidates to their
    loss; on answers each of them is answered for that, which is slow.
    """

    name: ClassVar[str] = "guard"
    summary: ClassVar[str] = "blocks requests or answers that a judge flags (judge=...)"
    adapts: ClassVar = "search"

    judge: str = ""
    """A judge, written as for `--judge`, such as `guard:model=FOLDER,family=llama-guard`."""
    on: Literal["answer", "prompt"] = "answer"
    """Whether answers are judged, or requests."""
    weight: float = 5.0
    """Weight of the penalty in attacks' losses."""
    tokens: int = 64
    """Maximum length of the answers that attacks have judged, in tokens."""

    def __post_init__(self) -> None:
        if not self.judge:
            raise BadInput("guard: no judge given; give judge='NAME' or judge='NAME:key=value,...'")
        if self.on not in ("answer", "prompt"):
            raise BadInput(f"guard: on='{self.on}'; valid: answer, prompt")
        load_judge(self.judge)

    def fit(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Nothing; what identifies the judge, its model's revision included."""
        return Artefact(data={"judge": load_judge(self.judge).identity})

    def around(self, model: Model, artefact: Artefact) -> Model:
        """The judge in front of the model."""
        from attacks.core.model import ShieldedModel

        return ShieldedModel(model, [_Judging(self)])


@dataclass(frozen=True, eq=False)
class _Judging(Shield):
    of: GuardJudge

    @property
    def name(self) -> str:
        return self.of.name

    @cached_property
    def judge(self) -> Judge:
        """Loaded once, with the first request."""
        return load_judge(self.of.judge)

    def answer(self, exchange: Exchange, asked: Sequence[Messages]) -> list[Shielded]:
        texts = [last_user_message(turns) for turns in asked]
        if self.of.on == "answer":
            answers = exchange.ask(asked)
            said = [exchange.model.chat.answer(answer) for answer in answers]
            scores = self.scores(texts, said)
            pairs = zip(scores, answers, strict=True)
            return [settled(self.name, score, answer) for score, answer in pairs]
        scores = self.scores(texts, texts)
        passed = iter(
            exchange.ask([turns for turns, over in zip(asked, scores, strict=True) if over <= 0])
        )
        return [
            settled(self.name, score, next(passed) if score <= 0 else Shielded(""))
            for score in scores
        ]

    def scores(self, requests: Sequence[str], answers: Sequence[str]) -> list[float]:
        """Above 0 for what the judge objects to, by as much as it does."""
        cases = [
            Case(Behavior("", request), answer, GENERAL_OPENERS)
            for request, answer in zip(requests, answers, strict=True)
        ]
        found = [0.0] * len(cases)
        for at, verdict in self.judge.judge_all(cases):
            if isinstance(verdict, Verdict) and verdict.success is not None:
                score = 0.5 if verdict.score is None else abs(verdict.score)
                found[at] = max(score, 1e-6) if verdict.success else -max(1 - score, 0.0)
        return found

    def toll(self, model: Model, prompt: Prompt) -> Toll:
        def cost(asked: Sequence[Messages]) -> Tensor:
            texts = [last_user_message(turns) for turns in asked]
            said: Iterable[str] = texts
            if self.of.on == "answer":
                home = model.unguarded()  # type: ignore[attr-defined]
                answers = home.generate(asked, max_new_tokens=self.of.tokens)
                said = map(model.chat.answer, answers)
            scores = torch.tensor(self.scores(texts, list(said)))
            return self.of.weight * scores.clamp_min(0)

        return cost
