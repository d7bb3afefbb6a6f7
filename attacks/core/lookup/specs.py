"""Objects from a name and parameters, as the command line and suites write them.

`name` or `name:key=value,...`, with TOML values; the keys are the fields of a dataclass. Strings
may go without quotes, which shells swallow: `gcg:layout.place=both`, `rubric:model=owner/name`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from attacks.core.errors import BadInput, suggestion
from attacks.core.parsing import from_toml

T = TypeVar("T")

_BARE = re.compile(r"=\s*([A-Za-z~./][^,=\"'\[\]{}]*?)\s*(?=,|$)")


def split(kind: str, spec: str) -> tuple[str, dict[str, Any]]:
    """The name and the parameters of a spec.

    Args:
        kind: what it names, for messages.
        spec: `name` or `name:key=value,...`.

    Raises:
        BadInput: parameters that are not TOML.
    """
    name, _, text = spec.partition(":")
    try:
        return name, _toml(text)
    except ValueError as error:
        with suppress(ValueError):
            return name, _toml(_BARE.sub(_quoted, text))
        raise BadInput(
            f"{kind} '{spec}': the parameters after ':' must be key=value,... with TOML values "
            f"({error})"
        ) from error


def summands(spec: str) -> list[str]:
    """A spec split at each `+` outside brackets and quotes that is not the sign of a number."""
    parts, quote, depth, escaped = [""], "", 0, False
    for at, char in enumerate(spec):
        before, after = spec[at - 1 : at], spec[at + 1 : at + 2]
        signs = before == "=" or after.isdigit()
        if char == "+" and not (quote or depth or signs):
            parts.append("")
            continue
        parts[-1] += char
        if quote:
            # Only in double quotes does a backslash take the next character along.
            closes = char == quote and not escaped
            escaped = quote == '"' and char == "\\" and not escaped
            quote = "" if closes else quote
        elif char in "\"'":
            quote = char
        else:
            depth += (char in "[{") - (char in "]}")
    return parts


def build(who: str, cls: type[T], params: Mapping[str, Any], *, name: str = "") -> T:
    """An object of `cls` with these parameters, checked.

    Args:
        who: begins the messages.
        cls: a dataclass, or a class that takes no parameters.
        params: its fields.
        name: what an error of the class itself may begin with, which is not said twice.

    Raises:
        BadInput: unknown parameter, or a value of the wrong type.
    """
    if not dataclasses.is_dataclass(cls):
        refuse_unknown(who, params, ())
        return cls()
    _check_names(who, cls, params)
    try:
        return TypeAdapter(cls).validate_python(params)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        where = f"{who}, parameter '{place}'" if place else who
        why = first["msg"].removeprefix("Value error, ").removeprefix(f"{name}: ")
        raise BadInput(f"{where}: {why}") from error


def option_groups(cls: Any) -> dict[str, type[Any]]:
    """The fields that hold a group of options, and the dataclass of each."""
    made: dict[str, Any] = {each.name: each.default_factory for each in dataclasses.fields(cls)}
    return {
        name: factory
        for name, factory in made.items()
        if isinstance(factory, type) and dataclasses.is_dataclass(factory)
    }


def refuse_unknown(who: str, names: Iterable[str], valid: Sequence[str]) -> None:
    """Make sure that all names are valid ones.

    Raises:
        BadInput: the first that is not.
    """
    for name in names:
        if name not in valid:
            known = ", ".join(valid) or "none"
            close = suggestion(name, valid)
            raise BadInput(f"{who} has no parameter '{name}'; valid: {known}{close}")


def _check_names(who: str, cls: Any, params: Mapping[str, Any], path: str = "") -> None:
    """Make sure that all parameters exist, those in groups of options too."""
    valid = [path + field.name for field in dataclasses.fields(cls)]
    refuse_unknown(who, [path + key for key in params], valid)
    for name, group in option_groups(cls).items():
        if isinstance(given := params.get(name), Mapping):
            _check_names(who, group, given, f"{path}{name}.")


def _toml(text: str) -> dict[str, Any]:
    return dict(from_toml(f"params = {{{text}}}")["params"])


def _quoted(match: re.Match[str]) -> str:
    value = match[1]
    if value in ("true", "false", "inf", "nan"):
        return match[0]
    escaped = value.replace("\\", "\\\\")
    return f'="{escaped}"'
