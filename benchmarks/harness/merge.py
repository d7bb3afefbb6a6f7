"""Putting the results folders of several machines together, as if one had run it all."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attacks.core.errors import BadInput
from benchmarks.harness import artefacts
from benchmarks.storage.records import Judgement, Record
from benchmarks.storage.store import (
    NOTES,
    RECORDS,
    Store,
    append_notes,
    read_judgements,
    read_notes,
    read_records,
)

#: What two runs of one cell may differ in.
_APART = (
    *("seconds", "peak_memory_bytes", "concurrency", "together", "versions", "budget_seconds"),
    *("hardware", "suite"),
)


@dataclasses.dataclass
class _Cell:
    """A record with its judgements, and the folder that it is from."""

    record: Record
    folder: Path
    judgements: dict[tuple[str, int], Judgement]

    @property
    def rank(self) -> tuple[bool, bool]:
        """Higher for what supersedes: finished, then stopped by a budget, then failed."""
        return self.record.status == "ok", self.record.status == "budget"


def merge(folders: Sequence[Path], out: Path) -> int:
    """Copies what is in `folders` into the results folder `out`; how many records that added.

    What is finished supersedes what failed or was stopped. Nothing is copied where two folders
    contradict each other.

    Raises:
        BadInput: two finished records of a cell, two verdicts of a judge on one answer, or two
            artefacts of one id that differ; a folder without records; `out` among the folders; as
            `Store` and `artefacts.load`.
    """
    if out.resolve() in {folder.resolve() for folder in folders}:
        raise BadInput(f"'{out}' is among the folders to be merged; choose another --out")
    merged: dict[str, _Cell] = {}
    for folder in (*([out] if (out / RECORDS).is_file() else []), *folders):
        for cell in _cells(folder):
            earlier = merged.setdefault(cell.record.key, cell)
            if earlier is cell or cell.rank < earlier.rank:
                continue
            if cell.rank > earlier.rank:
                merged[cell.record.key] = cell
            elif cell.record.status == "ok":
                _agree(earlier, cell)
                earlier.judgements = cell.judgements | earlier.judgements
    fitted = _artefacts(folders, out)
    with Store(out) as store:
        before = len(store.records)
        for identity, folder in fitted.items():
            made = artefacts.load(folder, identity)
            assert made is not None
            artefacts.save(out / "artefacts", identity, made)
        for name in NOTES:
            for folder in folders:
                if noted := read_notes(folder / name):
                    append_notes(out / name, noted)
        for cell in merged.values():
            there = store.records.get(cell.record.key)
            rows = list(cell.judgements.values())
            if there is None or there != cell.record:
                store.add(cell.record, rows)
            else:
                store.add_judgements([row for row in rows if _new(store, cell.record, row)])
        return len(store.records) - before


def _cells(folder: Path) -> list[_Cell]:
    judged: dict[str, dict[tuple[str, int], Judgement]] = defaultdict(dict)
    for row in read_judgements(folder):
        judged[row.key][row.judge, row.completion_index] = row
    return [_Cell(record, folder, judged[record.key]) for record in read_records(folder)]


def _agree(one: _Cell, other: _Cell) -> None:
    """Make sure that two finished runs of a cell ended alike.

    Raises:
        BadInput: they did not.
    """
    differing = [
        name for name, value in _plain(one.record).items() if _plain(other.record)[name] != value
    ]
    both = one.judgements.keys() & other.judgements.keys()
    if any(one.judgements[at] != other.judgements[at] for at in both):
        differing.append("judgements")
    if differing:
        record = one.record
        raise BadInput(
            f"'{one.folder}' and '{other.folder}' differ in {', '.join(differing)} of "
            f"{record.attack} on {record.behavior_id} ({record.model}, seed {record.seed}); "
            "nothing is merged"
        )


def _plain(record: Record) -> dict[str, Any]:
    values = dataclasses.asdict(record)
    if values["first_success"]:
        del values["first_success"]["seconds"]
    return {name: value for name, value in values.items() if name not in _APART}


def _new(store: Store, record: Record, row: Judgement) -> bool:
    return row.completion_index in store.unjudged(record, row.judge)


def _artefacts(folders: Sequence[Path], out: Path) -> dict[str, Path]:
    """Ids of what `out` has not, and where each is found.

    Raises:
        BadInput: two of one id that differ, or damaged files.
    """
    found: dict[str, Path] = {}
    for folder in (folder / "artefacts" for folder in (out, *folders)):
        for path in sorted(folder.glob("*.json")):
            first = found.setdefault(path.stem, folder)
            made = artefacts.load(folder, path.stem)
            other = artefacts.load(first, path.stem)
            assert made is not None and other is not None
            if made.hash != other.hash:
                raise BadInput(
                    f"artefact {path.stem} differs between '{first}' and '{folder}'; "
                    "nothing is merged"
                )
    return {identity: folder for identity, folder in found.items() if folder.parent != out}
