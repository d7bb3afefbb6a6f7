"""Any data set on the Hugging Face Hub as a behaviour set: `owner/name:split:text=Goal,...`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from benchmarks.inputs.behavior_files import ALIASES, collected, object_fields
from benchmarks.inputs.public_sets import Part, PublicSet, download

_SPEC = re.compile(
    r"(?P<path>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?:(?P<split>\w+)(?::(?P<columns>.+))?"
)
_FORM = "owner/name[@revision]:split[:config=...,text=COLUMN,harmful=true|false|COLUMN,...]"


def is_hub_set(name: str) -> bool:
    """Whether `name` is written as a data set on the Hub with one of its splits."""
    return _SPEC.fullmatch(name) is not None


def load_hub(spec: str) -> list[Behavior]:
    """The rows of one split of a data set on the Hub, through `datasets`.

    Args:
        spec: `owner/name[@revision]:split`, and after another colon, separated by commas:
            `config=NAME`, and `FIELD=COLUMN` for the fields of a behaviour, where columns do not go
            by the names that files may use. `harmful` may also be `true` or `false` for all rows.
            Rows without an id are called `name-1`, `name-2`, ...

    Raises:
        BadInput: it cannot be had, there is no such column, or a row is no behaviour.
    """
    found = _SPEC.fullmatch(spec)
    assert found, spec
    options = _options(spec, found["columns"] or "")
    entry = PublicSet(found["path"], (), "", "", "", revision=found["revision"])
    part = Part(found["split"], "", {}, config=options.pop("config", None))
    table = download(spec, entry, part)
    same: dict[str, Any] = {}
    if options.get("harmful") in ("true", "false"):
        same["harmful"] = options.pop("harmful") == "true"
    for field, column in options.items():
        if column not in table.column_names:
            raise BadInput(
                f"behaviour set '{spec}': {field}={column} names no column; it has "
                f"{', '.join(table.column_names)}"
            )
    # Columns that are named win over those that happen to go by a name of the same field.
    taken = {name for field in (*options, *same) for name in ALIASES[field]}
    stem = found["path"].partition("/")[2]

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for number, row in enumerate(table, start=1):
            place = f"behaviour set '{spec}', row {number}"
            values = {name: row[name] for name in row if name.strip().lower() not in taken}
            values |= same | {field: row[column] for field, column in options.items()}
            yield place, object_fields(values, f"{stem}-{number}", place)

    return collected(rows(), f"behaviour set '{spec}'")


def _options(spec: str, text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    valid = ("config", *(name for name in ALIASES if name != "target_mismatch"))
    for pair in filter(None, text.split(",")):
        key, _, value = pair.partition("=")
        if key not in valid or not value:
            known = ", ".join(f"{name}=..." for name in valid)
            raise BadInput(
                f"behaviour set '{spec}': '{pair}' is not one of {known}; the form is {_FORM}"
            )
        options[key] = value
    return options
