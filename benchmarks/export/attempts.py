"""The records of a folder with one judge's verdicts, grouped as other projects keep results."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput, suggestion
from benchmarks.judges.context import Context
from benchmarks.storage.entries import Entry
from benchmarks.storage.records import Judgement, Record, digest
from benchmarks.storage.store import RECORDS, read_judgements, read_records


@dataclass(frozen=True)
class Attempt:
    """A record, its behaviour, and what the judge says."""

    entry: Entry
    behavior: Behavior

    @property
    def record(self) -> Record:
        """What was recorded."""
        return self.entry.record


@dataclass(frozen=True)
class Group:
    """What one attack did to one model in one setting, a behaviour once for each seed."""

    method: str
    """Name of the attack, with what tells it from others of that name; fit for a file name."""
    model: str
    """Name of the model, fit for a file name."""
    attempts: tuple[Attempt, ...]

    @property
    def first(self) -> Record:
        """Any record: all agree on model, attack and defence."""
        return self.attempts[0].record

    @property
    def sends_text(self) -> bool:
        """Whether the prompts are all that the attacker needs."""
        return self.first.threat_model == "prompt"


@dataclass(frozen=True)
class Export:
    """What a folder holds."""

    judge: str
    groups: tuple[Group, ...]
    written: float
    """When the records were last written to, in seconds since 1970."""


def choose_judge(known: Sequence[str], judge: str | None) -> str:
    """The judge whose verdicts are meant.

    Raises:
        BadInput: none has judged, no such one, or several and none was chosen.
    """
    if judge is None and len(known) == 1:
        return known[0]
    if not known:
        raise BadInput("nothing has been judged there; run `reroute judge DIR --judge SPEC` first")
    if judge is None:
        raise BadInput(f"judged by {', '.join(known)}: choose one with --judge")
    if judge not in known:
        valid = f"valid: {', '.join(known)}{suggestion(judge, known)}"
        raise BadInput(f"'{judge}' has judged nothing there; {valid}")
    return judge


def read_export(folder: Path, judge: str | None, behaviors: str | None) -> Export:
    """The records of a folder in groups.

    Raises:
        BadInput: no records, no such judge, or a behaviour that is not to be found.
    """
    records = read_records(folder)
    if not records:
        raise BadInput(f"'{folder}' holds no records")
    judgements = read_judgements(folder)
    name = choose_judge(sorted({row.judge for row in judgements}), judge)
    verdicts: dict[str, dict[int, Judgement]] = defaultdict(dict)
    for row in judgements:
        if row.judge == name:
            verdicts[row.key][row.completion_index] = row
    context = Context(folder, behaviors)
    attempts = [Attempt(Entry(row, verdicts[row.key]), context.behavior(row)) for row in records]
    return Export(name, tuple(_groups(attempts)), (folder / RECORDS).stat().st_mtime)


def _groups(attempts: Sequence[Attempt]) -> list[Group]:
    found: dict[tuple[str, ...], list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        found[_setting(attempt.record)].append(attempt)
    names = {key: _names(own[0].record, [x.record for x in attempts]) for key, own in found.items()}
    taken = list(names.values())
    return [
        Group(
            # Whatever else tells them apart has no name of its own.
            method + (f"-{digest(key)[:6]}" if taken.count((method, model)) > 1 else ""),
            model,
            tuple(found[key]),
        )
        for key, (method, model) in names.items()
    ]


def _setting(record: Record) -> tuple[str, ...]:
    return (
        *(record.model, record.revision, record.dtype, record.attack, record.attack_hash),
        *(record.defense_hash, record.adaptivity, record.origin_model, record.stop),
        *(str(record.system), str(record.max_new_tokens)),
    )


def _names(record: Record, every: Sequence[Record]) -> tuple[str, str]:
    method = record.attack
    if len({other.attack_hash for other in every if other.attack == record.attack}) > 1:
        method += f"-{record.attack_hash[:8]}"
    if record.origin_model:
        method += f"-from-{record.origin_model}"
    model = record.model
    if len({other.revision for other in every if other.model == record.model}) > 1:
        model += f"-{record.revision[:8]}"
    if record.defense:
        model += f"-behind-{record.defense}-{record.adaptivity}"
    return file_name(method), file_name(model)


def file_name(name: str) -> str:
    """`name` with what no file name should hold as dashes, and never a hidden file or a path."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", name).strip(".-") or "unnamed"


def left_out(groups: Sequence[Group], why: str) -> list[str]:
    """A line on groups that a format cannot hold, or none."""
    if not groups:
        return []
    counts: Mapping[str, int] = {
        method: sum(len(group.attempts) for group in groups if group.method == method)
        for method in sorted({group.method for group in groups})
    }
    told = ", ".join(f"{method} ({count} records)" for method, count in counts.items())
    return [f"left out, {why}: {told}"]
