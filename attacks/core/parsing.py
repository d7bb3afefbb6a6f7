"""JSON and TOML from anywhere, as values that can be walked through. Needs no torch."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable
from typing import Any

#: Containers within each other. Python's own parsers, and all that goes through a value by
#: recursion, end in a RecursionError at some hundreds; no file of the suite has more than ten.
DEEPEST = 100


def from_json(text: str | bytes) -> Any:
    """The JSON value.

    Raises:
        ValueError: malformed, or nested deeper than `DEEPEST`.
    """
    return _shallow(json.loads, text)


def from_toml(text: str) -> dict[str, Any]:
    """The TOML table.

    Raises:
        ValueError: malformed, or nested deeper than `DEEPEST`.
    """
    return dict(_shallow(tomllib.loads, text))


def _shallow(parse: Callable[[Any], Any], text: str | bytes) -> Any:
    deep = f"nested more than {DEEPEST} deep"
    try:
        value = parse(text)
    except RecursionError:
        raise ValueError(deep) from None
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [outer for outer in level if isinstance(outer, dict | list)]
        if not level:
            return value
        level = [inner for outer in level for inner in _in(outer)]
    raise ValueError(deep)


def _in(outer: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return outer if isinstance(outer, list) else outer.values()
