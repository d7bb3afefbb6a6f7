"""A results folder: append-only streams of JSON lines.

Records have one writer at a time. Judgements have any number, each of which holds the file for as
long as it appends.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from attacks.core.errors import BadInput
from attacks.core.parsing import from_json
from benchmarks.storage.folders import bounded, contained
from benchmarks.storage.records import Judgement, Record, digest, line_of

RECORDS, JUDGEMENTS, SPEECH = "records.jsonl", "judgements.jsonl", "speech.jsonl"
BEHAVIORS, SUITES = "behaviors.jsonl", "suites.jsonl"
NOTES = (BEHAVIORS, SPEECH, SUITES)
"""What records name by the hash of a line."""
OWNER = ".owner"
"""The process that writes, and its host."""

Row = TypeVar("Row")

_RECORD, _JUDGEMENT = TypeAdapter(Record), TypeAdapter(Judgement)
_OBJECT = TypeAdapter(dict[str, Any])


@dataclasses.dataclass(frozen=True)
class _Unknown:
    """What of a line of `speech.jsonl` boards need."""

    hash: str
    unknown: float = 0.0


_UNKNOWN = TypeAdapter(_Unknown)


class Store:
    """The one writer of a results folder; a context manager.

    A record is on the disk before its judgements are begun. So a kill at any moment costs at most
    the last line and the judgements of the last record.
    """

    records: dict[str, Record]
    """By key, superseded ones removed."""
    notes: tuple[str, ...]
    """What was put right on opening, for the user."""

    def __init__(self, folder: Path) -> None:
        """Opens `folder`, makes it if need be, and moves a torn last line aside.

        Raises:
            BadInput: the folder cannot be written, is in use by another run, or holds a malformed
                line before the last one, or a link that leads out of it.
        """
        self.folder = contained(folder)
        self._lock = FileLock(folder / ".lock", timeout=0)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            (folder / OWNER).write_text(f"{os.getpid()} {platform.node()}", "utf-8")
            notes = (
                _recover(folder / RECORDS, _RECORD),
                _recover_judgements(folder),
            )
            self.notes = tuple(note for note in notes if note)
            rows = list(_rows(folder / RECORDS, _RECORD))
            self.records = {row.key: row for row in rows}
            self._judged = {
                (row.key, row.judge, row.completion_index)
                for row in _rows(folder / JUDGEMENTS, _JUDGEMENT)
            }
        except Timeout:
            _refuse(
                f"'{folder}' is in use by another run{_owner(folder)}; wait for it or choose "
                "another --out"
            )
        except OSError as error:
            self._lock.release()
            _refuse(f"cannot write into '{folder}': {error.strerror}")
        except BaseException:
            self._lock.release()
            raise
        if rows and any(row.key == rows[-1].key for row in rows[:-1]):
            # The last record superseded another: judgements of its key may be those of the old one.
            self._judged = {judged for judged in self._judged if judged[0] != rows[-1].key}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def add(self, record: Record, judgements: Sequence[Judgement]) -> None:
        """Appends a record, then its judgements; a failure that repeats itself adds no line."""
        earlier, failed = self.records.get(record.key), record.status in ("error", "out_of_memory")
        if earlier and failed and (earlier.status, earlier.error) == (record.status, record.error):
            return
        append_lines(self.folder / RECORDS, [line_of(record)])
        self.records[record.key] = record
        self.add_judgements(judgements)

    def add_judgements(self, judgements: Sequence[Judgement]) -> None:
        """Appends judgements of records that are there already."""
        append_judgements(self.folder, judgements)
        self._judged |= {(row.key, row.judge, row.completion_index) for row in judgements}

    def unjudged(self, record: Record, judge: str) -> list[int]:
        """Indices of the record's completions that `judge` has not judged."""
        indices = range(len(record.completions))
        return [index for index in indices if (record.key, judge, index) not in self._judged]


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends JSON objects, which are on the disk when this returns.

    A line that an earlier writer was killed within is moved aside first.

    Raises:
        BadInput: the file cannot be written.
    """
    try:
        if path.is_file() and not _ends_whole(path):
            _recover(path, _OBJECT)
        contained(path.parent)
        with path.open("ab") as file:
            for row in rows:
                file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        _refuse(f"cannot write into '{path.parent}': {error.strerror}")


def append_notes(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Appends the rows whose hashes, their keys, are not there yet; for the writer of the records.

    Raises:
        BadInput: the file cannot be written, or holds a malformed line before the last one.
    """
    known = read_notes(path)
    append_lines(path, [{"hash": key, **rows[key]} for key in rows if key not in known])


def read_notes(path: Path) -> dict[str, dict[str, Any]]:
    """What `append_notes` has written, by hash; empty where there is no such file.

    Raises:
        BadInput: a malformed line before the last one, or one without a hash.
    """
    rows = list(read_lines(path))
    if any("hash" not in row for row in rows):
        _refuse(f"{path}: a line has no 'hash'; repair or remove that line")
    return {str(row.pop("hash")): row for row in rows}


def append_judgements(folder: Path, judgements: Sequence[Judgement]) -> None:
    """Appends judgements, whoever else does so at the same time.

    Raises:
        BadInput: the folder cannot be written.
    """
    if judgements:
        with _holding_judgements(folder):
            append_lines(folder / JUDGEMENTS, map(dataclasses.asdict, judgements))


@contextmanager
def _holding_judgements(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / ".judgements.lock"):
            yield
    except OSError as error:
        _refuse(f"cannot write into '{folder}': {error.strerror}")


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _recover_judgements(folder: Path) -> str | None:
    with _holding_judgements(folder):
        return _recover(folder / JUDGEMENTS, _JUDGEMENT)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream that may not be there; an unfinished last line is passed over.

    Raises:
        BadInput: a malformed line before the last one.
    """
    return _rows(path, _OBJECT)


def read_unknown(folder: Path) -> dict[str, float]:
    """By the hash of each line of `speech.jsonl`: the share of refusals that judges do not know.

    Raises:
        BadInput: a malformed line before the last one.
    """
    return {row.hash: row.unknown for row in _rows(Path(folder) / SPEECH, _UNKNOWN)}


def _owner(folder: Path) -> str:
    """Which process has the folder, for the user, as far as it has said so."""
    try:
        text = (folder / OWNER).read_bytes()[:300].decode()
    except (OSError, UnicodeDecodeError):
        return ""
    # The file is anyone's to write, and goes to a terminal.
    found = re.fullmatch(r"([0-9]{1,10}) ([A-Za-z0-9._-]{1,255})", text, re.ASCII)
    return f" (process {found[1]} on {found[2]})" if found else ""


def read_records(folder: Path) -> list[Record]:
    """The records of a results folder, superseded ones removed; reads beside a running writer.

    Raises:
        BadInput: no records there, or a malformed line before the last one.
    """
    path = Path(folder) / RECORDS
    if not path.is_file():
        _refuse(f"no {RECORDS} in '{folder}'; valid: a folder that `reroute run --out` has filled")
    return _latest(_rows(path, _RECORD))


def read_judgements(folder: Path) -> list[Judgement]:
    """The judgements of the records that `read_records` returns, the last of each kept.

    A judgement of an answer that a later record has superseded is none of these.

    Raises:
        BadInput: as `read_records`.
    """
    answers = {record.key: record.completions for record in read_records(folder)}
    latest = {
        (row.key, row.judge, row.completion_index): row
        for row in _rows(Path(folder) / JUDGEMENTS, _JUDGEMENT)
        if row.completion_index < len(answers.get(row.key, ()))
        and row.answer in ("", digest(answers[row.key][row.completion_index]))
    }
    return list(latest.values())


def _latest(rows: Iterable[Record]) -> list[Record]:
    """The last record of each key, and failures only where nothing came after them.

    A failure to fit an artefact has a key of its own, as the artefact's hash is part of a key; so
    failures are also superseded by a later record of the same cell under another key.
    """
    by_key: dict[str, Record] = {}
    for row in rows:
        by_key.pop(row.key, None)
        by_key[row.key] = row
    seen, kept = set(), []
    for row in reversed(by_key.values()):
        attacked = (row.model, row.revision, row.dtype, row.attack_hash, row.stop, row.origin)
        cell = (*attacked, row.defense_hash, row.adaptivity, row.behavior_id, row.seed)
        if row.status in ("ok", "budget") or cell not in seen:
            kept.append(row)
        seen.add(cell)
    return kept[::-1]


def _line(row: Mapping[str, Any]) -> bytes:
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    # A lone surrogate can be in no UTF-8 file; it must not stop the writing of everything else.
    return text.encode("utf-8", "replace") + b"\n"


def _parse(line: bytes, adapter: TypeAdapter[Row]) -> Row:
    value: Any = from_json(line)
    return adapter.validate_python(value)


def _rows(path: Path, adapter: TypeAdapter[Row]) -> Iterator[Row]:
    """The rows of a stream. What a writer has not finished, the last line, is passed over."""
    if not path.is_file():
        return
    contained(path.parent)
    lines = bounded(path).read_bytes().removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _parse(line, adapter)
        except ValueError as error:
            if number == len(lines):
                return
            reason = " ".join(str(error).split())[:120]
            _refuse(f"{path}, line {number}: malformed ({reason}); repair or remove that line")


def _recover(path: Path, adapter: TypeAdapter[Row]) -> str | None:
    """Moves an unparsable last line of `path` into `path`.torn and says so."""
    # Shows before anything is run whether it can be written.
    path.open("ab").close()
    data = bounded(path).read_bytes()
    if not data:
        return None
    start = data.removesuffix(b"\n").rfind(b"\n") + 1
    tail = data[start:]
    try:
        _parse(tail, adapter)
    except ValueError:
        aside = path.with_name(path.name + ".torn")
        with aside.open("ab") as file:
            file.write(tail.removesuffix(b"\n") + b"\n")
            os.fsync(file.fileno())
        os.truncate(path, start)
        return (
            f"{path}: the last line was truncated; it is kept in {aside.name}, and its cell runs "
            "again"
        )
    if not tail.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
    return None


def _refuse(message: str) -> NoReturn:
    raise BadInput(message)
