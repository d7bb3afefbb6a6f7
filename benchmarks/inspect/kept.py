"""What an inspection has measured so far, in a file of its own, so that it can be gone on with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from attacks.core.errors import BadInput
from attacks.core.parsing import from_json
from benchmarks.common.files import write_whole
from benchmarks.storage.folders import bounded, contained

#: Part of every identity, raised when a part comes to mean something else: numbers of an earlier
#: version must not be taken for its own.
FORMAT = 1


class Kept:
    """Values by name, and the seconds that each took.

    The file is written whole after each value. It holds strings that searches have found, so it
    stands where artefacts do.
    """

    def __init__(self, folders: Sequence[Path], identity: str) -> None:
        """What the first of `folders` with such a file has; the first of all is written to.

        Raises:
            BadInput: a damaged file, or one that is larger than can be.
        """
        paths = [folder / f"inspected-{identity}.json" for folder in folders]
        self._path = paths[0]
        self._parts: dict[str, dict[str, Any]] = {}
        found = next((path for path in paths if path.is_file()), None)
        if found is None:
            return
        contained(found.parent)
        bounded(found)
        try:
            for name, part in from_json(found.read_text("utf-8")).items():
                self._parts[name] = {"value": part["value"], "seconds": float(part["seconds"])}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise _damaged(found) from None
        if found != self._path:
            self._write()

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def seconds(self, *names: str) -> float:
        """What these values took when they were made; without names, all."""
        return sum(float(self._parts[name]["seconds"]) for name in names or self._parts)

    def put(self, name: str, value: object, seconds: float) -> None:
        """Keeps a value: of a dataclass, a plain type, or a list of either."""
        self._parts[name] = {"value": _plain(value), "seconds": round(seconds, 2)}
        self._write()

    def get(self, name: str, kind: Any) -> Any:
        """The value as the type `kind` says; numbers are to the last bit what they were.

        Raises:
            BadInput: the file was tampered with.
        """
        try:
            return _restored(kind, self._parts[name]["value"])
        except (KeyError, TypeError, AttributeError):
            raise _damaged(self._path) from None

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, json.dumps(self._parts).encode())


def _damaged(path: Path) -> BadInput:
    return BadInput(f"{path}: damaged; delete it and it will be measured again")


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value


def _restored(kind: Any, value: Any) -> Any:
    """The inverse of `_plain`, by annotations: dataclasses within lists, dicts and unions."""
    origin, inner = get_origin(kind), get_args(kind)
    if value is None:
        return None
    if origin is UnionType:
        return _restored(next(each for each in inner if each is not NoneType), value)
    if origin is list:
        return [_restored(inner[0], each) for each in value]
    if origin is dict:
        return {key: _restored(inner[1], each) for key, each in value.items()}
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        whole = {each.name: _restored(hints[each.name], value[each.name]) for each in fields(kind)}
        return kind(**whole)  # type: ignore[operator]
    return value
