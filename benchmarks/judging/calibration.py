"""How far a judge can be trusted: what it says of answers whose truth is known."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.parsing import from_json
from benchmarks.boards.correction import Counts
from benchmarks.boards.success import Rate, success_rate
from benchmarks.boards.tables import table, text
from benchmarks.common.roc import area_under_curve
from benchmarks.judges import Case, Judge, Verdict
from benchmarks.storage.folders import bounded
from benchmarks.storage.records import digest


@dataclass(frozen=True)
class Known:
    """An answer whose truth is known; further fields of a row are not looked at."""

    behavior: str
    """The request."""
    response: str
    expect_refusal: bool | None = None
    """None: people do not agree, or nobody said."""
    expect_harmful: bool | None = None
    """Whether it answers a harmful request; that is what success means."""
    label: str = ""
    """The kind of case; `benign_...` are answers to harmless requests."""
    subtype: str = ""

    @property
    def kind(self) -> str:
        """Label and subtype."""
        return "/".join(part for part in (self.label, self.subtype) if part) or "all"

    @property
    def asks_success(self) -> bool:
        """Whether it tells if the judge is right about success: of an answer to harm, and known."""
        return self.expect_harmful is not None and not self.label.startswith("benign")


@dataclass(frozen=True)
class Quality:
    """How often a judge is right about one question; None where no case asks it."""

    sensitivity: Rate | None
    """Of those that are so, the share that it called so."""
    specificity: Rate | None
    """Of those that are not, the share that it called not so."""
    agreement: Rate | None


@dataclass(frozen=True)
class Kind:
    """The cases of one kind."""

    kind: str
    n: int
    refused: Rate | None
    """The share that the judge called refused."""
    success: Rate | None
    """The share that the judge called a success."""
    right: Rate | None
    """The share of right answers to the questions whose truth is known."""


@dataclass(frozen=True)
class Calibration:
    """What a judge said of known answers."""

    judge: str
    cases: str
    """Hash of the cases."""
    n: int
    unjudged: int
    refusal: Quality
    """Whether an answer is a refusal: all cases."""
    success: Quality
    """Whether an answer is a success: of answers to harmful requests, as on boards."""
    counts: Counts
    """Behind `success`."""
    kinds: tuple[Kind, ...]
    area: float | None = None
    """Area under the ROC curve of the judge's scores for success; None: it gives no scores."""
    threshold: float | None = None
    """Of those scores, the one from which up sensitivity and specificity add up to most."""


_KNOWN = TypeAdapter(Known)


def read_cases(path: Path) -> list[Known]:
    """The known answers in a JSONL file.

    Raises:
        BadInput: not readable, no rows, or a malformed one.
    """
    try:
        lines = bounded(path).read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"case file '{path}' cannot be read ({error})") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_KNOWN.validate_python(from_json(line)))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise BadInput(f"{path}, line {number}: field '{name}': {first['msg']}") from error
        except ValueError as error:
            raise BadInput(f"{path}, line {number}: not JSON ({error})") from error
    if not rows:
        raise BadInput(f"case file '{path}' holds no cases")
    return rows


def calibrate(judge: Judge, cases: Sequence[Known]) -> Calibration:
    """What the judge says of the cases.

    Raises:
        BadInput: the judge cannot be had.
    """
    shown = [
        judge.shown(Case(Behavior(str(at), case.behavior), case.response))
        for at, case in enumerate(cases)
    ]
    found = {at: said for at, said in judge.judge_all(shown) if isinstance(said, Verdict)}
    judged = [(cases[at], found[at]) for at in sorted(found)]
    refusals = [
        (case.expect_refusal, verdict.label == "refused")
        for case, verdict in judged
        if case.expect_refusal is not None and verdict.label != "unjudged"
    ]
    successes = [
        (bool(case.expect_harmful), verdict.success)
        for case, verdict in judged
        if case.asks_success and verdict.success is not None
    ]
    scores: dict[bool, list[float]] = {True: [], False: []}
    for case, verdict in judged:
        if case.asks_success and verdict.score is not None:
            scores[bool(case.expect_harmful)].append(verdict.score)
    area = area_under_curve(scores[False], scores[True])
    by_kind: dict[str, list[tuple[Known, Verdict]]] = defaultdict(list)
    for case, verdict in judged:
        by_kind[case.kind].append((case, verdict))
    said = [verdict for _, verdict in judged]
    return Calibration(
        judge=judge.identity,
        cases=digest([dataclasses.asdict(case) for case in cases]),
        n=len(cases),
        unjudged=len(cases) - sum(verdict.success is not None for verdict in said),
        refusal=_quality(refusals),
        success=_quality(successes),
        counts=Counts(
            hits=successes.count((True, True)),
            misses=successes.count((True, False)),
            rejections=successes.count((False, False)),
            alarms=successes.count((False, True)),
        ),
        kinds=tuple(_kind(name, rows) for name, rows in sorted(by_kind.items())),
        area=area,
        threshold=None if area is None else _best_threshold(scores[False], scores[True]),
    )


def _best_threshold(low: Sequence[float], high: Sequence[float]) -> float:
    """The score of those given at which Youden's index is greatest; of several the lowest."""

    def index(threshold: float) -> float:
        hits, alarms = (sum(score >= threshold for score in group) for group in (high, low))
        return hits / len(high) - alarms / len(low)

    return max(sorted({*low, *high}), key=index)


def _quality(pairs: Sequence[tuple[bool, bool]]) -> Quality:
    """Of (truth, said) pairs."""
    return Quality(
        _share(said for truth, said in pairs if truth),
        _share(not said for truth, said in pairs if not truth),
        _share(truth == said for truth, said in pairs),
    )


def _kind(name: str, rows: Sequence[tuple[Known, Verdict]]) -> Kind:
    right = []
    for case, verdict in rows:
        if case.expect_refusal is not None:
            right.append((verdict.label == "refused") == case.expect_refusal)
        if case.asks_success and verdict.success is not None:
            right.append(verdict.success == case.expect_harmful)
    return Kind(
        kind=name,
        n=len(rows),
        refused=_share(verdict.label == "refused" for _, verdict in rows),
        success=_share(v.success for _, v in rows if v.success is not None),
        right=_share(right),
    )


def _share(outcomes: Iterable[bool]) -> Rate | None:
    return success_rate([[outcome] for outcome in outcomes])


def as_json(found: Sequence[Calibration]) -> str:
    """A list of objects, with a final newline."""
    rows: list[dict[str, Any]] = [dataclasses.asdict(each) for each in found]
    return json.dumps(rows, indent=2, allow_nan=False) + "\n"


def as_markdown(found: Sequence[Calibration]) -> str:
    """A table of judges, one of kinds of cases for each judge, and how to read them."""
    rows = [
        [text(each.judge), asked, *map(_cell, (of.sensitivity, of.specificity, of.agreement))]
        for each in found
        for asked, of in (("refusal", each.refusal), ("success", each.success))
    ]
    headings = ("Judge", "Question", "Sensitivity", "Specificity", "Agreement")
    parts = [table(headings, rows, left=2)]
    parts += [
        f"{text(each.judge)}: area under the ROC curve of its scores for success {each.area:.3f}; "
        "the sum of sensitivity and specificity is largest at a threshold of "
        f"{each.threshold:.3g}, on these cases."
        for each in found
        if each.area is not None
    ]
    for each in found:
        kinds = [
            [text(kind.kind), str(kind.n), *map(_cell, (kind.refused, kind.success, kind.right))]
            for kind in each.kinds
        ]
        named = ("Kind of case", "n", "Called refused", "Called success", "Agreement")
        without = f"; {each.unjudged} without a verdict on success" if each.unjudged else ""
        parts.append(
            f"{text(each.judge)}: {each.n} cases{without}.\n\n{table(named, kinds, left=1)}"
        )
    parts.append(
        "Shares with 95 % intervals (Wilson). Sensitivity: share of the refusals, or "
        "successes, that the judge labels as such. Specificity: share of the others that it "
        "does not. Success is evaluated on answers to harmful requests, as on boards. "
        "Agreement by kind: over both questions, where the truth is known."
    )
    return "\n\n".join(parts) + "\n"


def _cell(rate: Rate | None) -> str:
    if rate is None:
        return ""
    return f"{rate.mean:.3f} [{rate.low:.2f}, {rate.high:.2f}] of {rate.n}"
