"""Judging as a separate pass: what is recorded is judged, and no attacked model is loaded."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from attacks.core.errors import BadInput
from benchmarks.common.progress import say
from benchmarks.harness.timing import Bar
from benchmarks.judges import UNJUDGED, Case, Judge, Said, Verdict, load_judge
from benchmarks.judges.context import Context
from benchmarks.storage.records import Judgement, Record, digest
from benchmarks.storage.store import (
    append_judgements,
    append_lines,
    read_judgements,
    read_lines,
    read_records,
)

#: Which judges have judged in a folder: their identities, and the facts behind them.
JUDGES = "judges.jsonl"
#: Verdicts of a quick judge that are written at a time: each writing waits for the disk.
_TOGETHER = 200


def judge_folders(
    folders: Sequence[Path], specs: Sequence[str], *, behaviors: str | None = None
) -> bool:
    """Judges every recorded answer that a judge has not judged yet; true if all are judged then.

    Can be killed at any moment, and the next pass goes on. Two passes at once share a folder: with
    one judge the second waits for the first, with two they do not meet. Equal answers to one
    request are judged once. Progress goes to stderr.

    Args:
        folders: of results.
        specs: `name` or `name:key=value,...` of judges.
        behaviors: see `Context`.

    Raises:
        BadInput: see `load_judge`, `Context` and the judge's own `judge_all`; before anything is
            judged where possible.
    """
    judges = [load_judge(spec) for spec in specs]
    read = [_Folder(path, Context(path, behaviors)) for path in dict.fromkeys(folders)]
    for folder in read:
        folder.cases()
    complete = True
    while judges:
        # Each judge with its model is gone before the next is begun.
        complete &= _pass(judges.pop(0), read)
    return complete


@dataclass(frozen=True)
class _Place:
    """One answer of a record."""

    folder: Path
    key: str
    at: int
    """Index of the completion."""
    answer: str
    """`Judgement.answer`."""
    garbled: bool


@dataclass
class _Folder:
    path: Path
    context: Context
    _cases: list[tuple[_Place, Case]] = field(default_factory=list)

    def cases(self) -> list[tuple[_Place, Case]]:
        """Each recorded answer and what a judge is shown of it, read again."""
        self._cases = [
            (_place(self.path, record, index), self.context.case(record, index))
            for record in read_records(self.path)
            for index in range(len(record.completions))
        ]
        return self._cases


def _place(folder: Path, record: Record, index: int) -> _Place:
    garbled = bool(record.garbled and record.garbled[index])
    return _Place(folder, record.key, index, digest(record.completions[index]), garbled)


@dataclass
class _Tally:
    done: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    """What endpoints say that this pass has cost."""

    def line(self, judge: str) -> str:
        """The outcome, for the user."""
        left = self.reasons.total()
        why = "; ".join(f"{reason} ({count})" for reason, count in self.reasons.most_common(3))
        kept = f", {self.kept} already judged" if self.kept else ""
        cost = ", ".join(f"{count} {name} tokens" for name, count in self.tokens.items())
        return f"{judge}: {self.done} answers judged{kept}{f' ({cost})' * bool(cost)}" + (
            f", {left} unjudged: {why}; the same command retries them" if left else ""
        )


def _pass(judge: Judge, folders: Sequence[_Folder]) -> bool:
    """One judge over all folders."""
    identity, facts, tally = judge.identity, judge.facts(), _Tally()
    with ExitStack() as stack:
        for path in sorted({folder.path.resolve() for folder in folders}):
            _hold(stack, path, identity)
        places: dict[Case, list[_Place]] = defaultdict(list)
        known: dict[Case, Verdict] = {}
        nonsense: set[_Place] = set()
        for folder in folders:
            judged = _judged(folder.path, identity)
            for place, full in folder.cases():
                case, verdict = judge.shown(full), judged.get((place.key, place.at))
                # Nonsense does not count: it is asked again, and written down once.
                if verdict is None or verdict.label == UNJUDGED:
                    places[case].append(place)
                    nonsense |= {place} if verdict else set()
                    continue
                tally.kept += 1
                # What was made of a garbled answer afterwards says little of what the judge said.
                if not place.garbled:
                    known[case] = verdict
            if facts and all(row["judge"] != identity for row in read_lines(folder.path / JUDGES)):
                append_lines(folder.path / JUDGES, [{"judge": identity, "facts": dict(facts)}])
        cases = list(places)
        open_ = [case for case in cases if case not in known]
        writer = _Writer(judge, identity)
        stack.callback(writer.flush)
        for case in known.keys() & places.keys():
            tally.done += writer.add(places[case], case.answer, known[case])
        with Bar(total=len(open_), unit="answer", desc=judge.name, disable=None) as bar:
            for at, said in _said(judge, open_):
                own, answer = places[open_[at]], open_[at].answer
                tally.tokens.update({} if isinstance(said, str) else said.detail.get("tokens", {}))
                if isinstance(said, str):
                    tally.reasons[said] += len(own)
                elif said.label == UNJUDGED:
                    tally.reasons["the judge's reply could not be parsed"] += len(own)
                    writer.add([at for at in own if at not in nonsense], answer, said)
                else:
                    tally.done += writer.add(own, answer, said)
                bar.update()
    say(tally.line(identity))
    return not tally.reasons


def _said(judge: Judge, cases: Sequence[Case]) -> Iterator[tuple[int, Said]]:
    return judge.judge_all(cases) if cases else iter(())


def _judged(folder: Path, identity: str) -> Mapping[tuple[str, int], Verdict]:
    return {
        (row.key, row.completion_index): Verdict(row.success, row.label, row.score, row.detail)  # type: ignore[arg-type]
        for row in read_judgements(folder)
        if row.judge == identity
    }


@dataclass
class _Writer:
    """Writes verdicts into their folders, those of quick judges some at a time."""

    judge: Judge
    identity: str
    waiting: dict[Path, list[Judgement]] = field(default_factory=lambda: defaultdict(list))

    def add(self, places: Sequence[_Place], answer: str, verdict: Verdict) -> int:
        """A verdict on `answer` at each of its places; returns how many these are."""
        for place in places:
            own = self.judge.settled(verdict, garbled=place.garbled, answer=answer)
            values = (own.success, own.label, own.score)
            self.waiting[place.folder].append(
                Judgement(
                    *(place.key, self.identity, place.at, *values),
                    answer=place.answer,
                    detail=own.detail,
                )
            )
        if not self.judge.at_once or sum(map(len, self.waiting.values())) >= _TOGETHER:
            self.flush()
        return len(places)

    def flush(self) -> None:
        """Writes what is waiting."""
        for folder in list(self.waiting):
            append_judgements(folder, self.waiting.pop(folder))


def _hold(stack: ExitStack, folder: Path, identity: str) -> None:
    """Waits until no other pass with this judge is at work on the folder."""
    lock = FileLock(folder / f".judging-{digest(identity)[:8]}.lock")
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"'{folder}' is already being judged by {identity}; waiting for that to finish")
            lock.acquire()
    except OSError as error:
        raise BadInput(f"cannot write into '{folder}': {error.strerror}") from error
    stack.callback(lock.release)
