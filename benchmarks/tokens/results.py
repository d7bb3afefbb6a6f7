"""What a study of control tokens finds, as plain numbers: the content of `data.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from benchmarks.boards.success import Rate
from benchmarks.inspect.results import plain
from benchmarks.tokens.sweep import Point


@dataclass(frozen=True)
class Outcome:
    """What becomes of a group of prompts, judged on the texts."""

    prompts: int
    refused: Rate
    succeeded: Rate | None
    """Answered with all facts; None where the judge cannot tell."""


@dataclass(frozen=True)
class Row:
    """One way of choosing the first token, and what becomes of a group under it."""

    how: str
    """Parameters of `control-tokens`; empty: the model's own choice."""
    group: str
    outcome: Outcome


@dataclass(frozen=True)
class Effect:
    """What suppressing one category's token does to one category's prompts, paired."""

    mode: str
    suppressed: str
    category: str
    prompts: int
    before: Rate
    """Success without an attack."""
    after: Rate
    changed: Rate
    """Share of the prompts that succeed in one case and not in the other."""

    @property
    def difference(self) -> float:
        """Of the success rates."""
        return self.after.mean - self.before.mean


@dataclass(frozen=True)
class Curve:
    """A sweep over thresholds on the test prompts, and a threshold from the training prompts."""

    about: str
    """The category; empty: all."""
    harmful: int
    harmless: int
    points: list[Point]
    monotone: bool
    auc: float
    threshold: float
    """Chosen on the training prompts."""
    train: Point
    test: Point
    f1: float
    """On the test prompts at that threshold."""
    f1_own: float
    """The same without a threshold: the model's own choice."""


@dataclass(frozen=True)
class Agreement:
    """Whether texts do what the tokens before them say."""

    how: str
    group: str
    token: str
    prompts: int
    refused: int
    """Texts that refuse."""
    agree: float | None
    """Share of the texts that do what the token says; None for a token that says nothing."""


@dataclass(frozen=True)
class Margin:
    """log p(refuse) - log p(respond) of the first token, over a group of prompts."""

    group: str
    lowest: float
    median: float
    highest: float


@dataclass(frozen=True)
class Report:
    """One study."""

    model: str
    revision: str
    dtype: str
    system: str | None
    train: str
    behaviors: str
    judge: str
    temperature: float
    suffix: int
    """Random tokens after each request."""
    tokens: list[str]
    """Names of the refusal tokens."""
    n_train: list[int]
    """Harmful and harmless prompts."""
    n_test: list[int]
    pairs: int
    """Groups of test prompts that share a target: wordings of one request."""
    own: list[Row]
    suppress: list[Row]
    induce: list[Row]
    effects: list[Effect]
    curves: list[Curve]
    agreement: list[Agreement]
    margins: list[Margin]

    def to_json(self) -> str:
        """The report as JSON; numbers that are not finite become null."""
        return json.dumps(plain(asdict(self)), indent=1, allow_nan=False) + "\n"
