"""Behaviours from files of many formats, with errors that name file and line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import TypeAdapter, ValidationError

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.parsing import from_json
from benchmarks.storage.folders import bounded

#: Columns for each field, preferred ones first; compared without regard to case. The public
#: sets use these names; some have both the instruction (`Goal`) and its short title (`Behavior`).
ALIASES = {
    "id": ("id", "behaviorid"),
    "text": ("text", "goal", "prompt", "instruction", "forbidden_prompt", "behavior"),
    "target": ("target",),
    "category": ("category", "semanticcategory", "type"),
    "harmful": ("harmful", "label"),
    "twin": ("twin",),
    "reference": ("reference",),
    "decoys": ("decoys",),
    "context": ("context", "contextstring"),
    "target_mismatch": ("target_mismatch",),
}

#: How harmful and harmless rows are marked, in lower case.
HARMFUL = {
    **dict.fromkeys(("true", "1", "yes", "harmful", "unsafe"), True),
    **dict.fromkeys(("false", "0", "no", "harmless", "benign", "safe"), False),
}

_BEHAVIOR = TypeAdapter(Behavior)


def read_file(path: Path) -> list[Behavior]:
    """The behaviours of a file of one of the `SUFFIXES`, in file order.

    Raises:
        BadInput: not readable, another suffix, no row, a malformed row, or an id used twice.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise BadInput(f"behaviour file {path}: must end in {', '.join(SUFFIXES)}")
    return collected(reader(path), f"behaviour file {path}")


def collected(found: Iterable[tuple[str, Mapping[str, Any]]], source: str) -> list[Behavior]:
    """The behaviours made of these (place, fields).

    Raises:
        BadInput: there are none, a malformed row, or an id used twice.
    """
    rows: dict[str, Behavior] = {}
    for place, fields in found:
        row = behavior(fields, place)
        if row.id in rows:
            raise BadInput(f"{place}: id '{row.id}' is used twice")
        rows[row.id] = row
    if not rows:
        raise BadInput(f"{source} holds no behaviours")
    return list(rows.values())


def behavior(fields: Mapping[str, Any], place: str) -> Behavior:
    """The behaviour with these field values; `place` begins every error.

    Raises:
        BadInput: a field is missing, of the wrong type, or blank where it must not be.
    """
    try:
        row = _BEHAVIOR.validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{place}: field '{name}': {first['msg']}") from error
    for name, value in (("id", row.id), ("text", row.text)):
        if not value.strip():
            raise BadInput(f"{place}: field '{name}' is blank")
    for name, facts in (("reference", row.reference), ("decoys", row.decoys)):
        if any(not fact.strip() for fact in facts or ()):
            raise BadInput(f"{place}: field '{name}' holds a blank fact")
    return row


def with_context(text: str, context: str | None) -> str:
    """`text` behind the material it speaks of, joined as HarmBench's direct requests are."""
    return f"{context}\n\n---\n\n{text}" if context else text


def is_harmful(value: str, place: str) -> bool:
    """What a `harmful` or `label` cell says.

    Raises:
        BadInput: it is none of the known words.
    """
    try:
        return HARMFUL[value.strip().lower()]
    except KeyError:
        raise BadInput(f"{place}: '{value}' is not one of {', '.join(HARMFUL)}") from None


def _jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, fields) of each line; blank lines are skipped."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        yield place, object_fields(_parsed(line, place), f"{path.stem}-{number}", place)


def _json(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, fields) of each object in an array."""
    rows = _parsed(_text(path), str(path))
    if not isinstance(rows, list):
        raise BadInput(f"{path}: not a JSON array of objects; one object a line is .jsonl")
    yield from _objects(path, rows)


def _parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, fields) of each row."""
    bounded(path)
    import datasets

    with TemporaryDirectory() as cache:
        try:
            table = datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
        # The reader raises errors of several libraries.
        except Exception as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise BadInput(f"behaviour file {path}: not a Parquet file ({reason})") from error
        yield from _objects(path, table.to_list())


def _objects(path: Path, rows: list[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, row in enumerate(rows, start=1):
        place = f"{path}, row {number}"
        yield place, object_fields(row, f"{path.stem}-{number}", place)


def _parsed(text: str, place: str) -> Any:
    try:
        value = from_json(text)
        # A lone surrogate passes as JSON and could be written to no record.
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:
        raise BadInput(f"{place}: not valid JSON ({error})") from error
    return value


def object_fields(row: Any, default_id: str, place: str) -> dict[str, Any]:
    """Field values of a row of typed values: names and left-out ids as in CSV files."""
    if not isinstance(row, dict):
        raise BadInput(f"{place}: not a JSON object")
    by_name = {str(key).strip().lower(): value for key, value in row.items() if value is not None}
    fields = {
        field: by_name[name]
        for field, names in ALIASES.items()
        if (name := next((name for name in names if name in by_name), None)) is not None
    }
    if "text" not in fields:
        raise BadInput(
            f"{place}: field 'text' is missing; one of {', '.join(ALIASES['text'])} must hold the "
            "instruction"
        )
    fields.setdefault("id", default_id)
    for name in ("id", "twin"):
        if type(fields.get(name)) is int:
            fields[name] = str(fields[name])
    context = fields.pop("context", None)
    if isinstance(fields["text"], str) and isinstance(context, str):
        fields["text"] = with_context(fields["text"], context)
    if isinstance(fields.get("harmful"), str):
        fields["harmful"] = is_harmful(fields["harmful"], f"{place}: field 'harmful'")
    if fields.pop("target_mismatch", False):
        fields["target"] = None
    return fields


def _csv(path: Path, *, delimiter: str = ",") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, fields) of each row; rows without an id are numbered from 1."""
    text = io.StringIO(_text(path), newline="")
    reader = csv.reader(text, strict=True, delimiter=delimiter)
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        columns = {
            field: next(name for name in names if name in header)
            for field, names in ALIASES.items()
            if any(name in header for name in names)
        }
        if header and "text" not in columns:
            raise BadInput(
                f"{path}, line 1: no column holds the instruction; "
                f"one of {', '.join(ALIASES['text'])} is needed"
            )
        number = 0
        for cells in reader:
            if not cells:
                continue
            number += 1
            place = f"{path}, line {reader.line_num}"
            if len(cells) != len(header):
                raise BadInput(f"{place}: {len(cells)} fields, the header has {len(header)}")
            row = dict(zip(header, cells, strict=True))
            values = {field: row[name] for field, name in columns.items()}
            yield place, _csv_fields(values, f"{path.stem}-{number}", place)
    except csv.Error as error:
        raise BadInput(f"{path}, line {reader.line_num}: {error}") from error


def _csv_fields(values: Mapping[str, str], default_id: str, place: str) -> Mapping[str, Any]:
    """Field values from CSV cells, in which nothing but text can stand."""
    fields: dict[str, Any] = {
        "id": values.get("id") or default_id,
        "text": with_context(values["text"], values.get("context")),
        "category": values.get("category", ""),
    }
    for name in ("target", "twin"):
        fields[name] = values.get(name) or None
    for name in ("reference", "decoys"):
        facts = [fact.strip() for fact in values.get(name, "").split(";")]
        fields[name] = [fact for fact in facts if fact] or None
    if values.get("harmful"):
        fields["harmful"] = is_harmful(values["harmful"], place)
    if values.get("target_mismatch", "0") not in ("", "0"):
        # The flag of a target that belongs to another row: none is better than a wrong one.
        fields["target"] = None
    return fields


def _text(path: Path) -> str:
    try:
        data = bounded(path).read_bytes()
    except OSError as error:
        raise BadInput(f"behaviour file {path}: {error.strerror or error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadInput(f"{path}, line {line}: not UTF-8") from error


_Reader = Callable[[Path], Iterator[tuple[str, Mapping[str, Any]]]]
_READERS: dict[str, _Reader] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
    ".parquet": _parquet,
}
SUFFIXES = tuple(_READERS)
