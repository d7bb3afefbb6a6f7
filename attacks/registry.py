"""Attacks by name: the shipped ones, loaded on demand, and those of installed packages."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from attacks.attack import Attack
from attacks.core.errors import BadInput

#: Entry-point group in which other packages register attacks.
GROUP = "reroute_bench.attacks"

_BUILT_IN = {
    "direct": "attacks.direct:Direct",
    "random-search": "attacks.random_search:RandomSearch",
    "gcg": "attacks.gcg:GCG",
    "ssr-probe": "attacks.ssr:ProbeSSR",
    "refusal-tokens": "attacks.refusal_tokens:RefusalTokens",
    "refusal-direction": "attacks.refusal_direction:RefusalDirection",
}


def sources() -> dict[str, str]:
    """Attack names and the `module:class` behind each, without importing any of them.

    Raises:
        BadInput: two packages, or a package and the suite, claim the same name.
    """
    table = dict(_BUILT_IN)
    for point in entry_points(group=GROUP):
        if table.setdefault(point.name, point.value) != point.value:
            raise BadInput(
                f"attack name '{point.name}' is claimed twice: {table[point.name]} and "
                f"{point.value}; uninstall one of the packages"
            )
    return table


def attack_class(name: str) -> type[Attack]:
    """The class registered as `name`.

    Raises:
        BadInput: unknown name, or a plugin that does not load or is no attack.
    """
    table = sources()
    if name not in table:
        raise BadInput(f"unknown attack '{name}'; valid: {', '.join(sorted(table))}")
    if name in _BUILT_IN:
        module, _, attribute = table[name].partition(":")
        loaded = getattr(import_module(module), attribute)
    else:
        try:
            loaded = EntryPoint(name, table[name], GROUP).load()
        except (ImportError, AttributeError) as error:
            raise BadInput(f"attack '{name}' ({table[name]}) does not load: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Attack)):
        raise BadInput(f"attack '{name}' ({table[name]}) is not a subclass of attacks.Attack")
    return loaded


def available() -> dict[str, type[Attack]]:
    """Every attack class by name."""
    return {name: attack_class(name) for name in sorted(sources())}


def load(name: str, **params: Any) -> Attack:
    """The attack `name` with `params`, its dataclass fields.

    Raises:
        BadInput: unknown name or parameter, or a value of the wrong type.
    """
    cls = attack_class(name)
    valid = [field.name for field in dataclasses.fields(cls)]
    for key in params:
        if key not in valid:
            listed = ", ".join(valid) or "none"
            raise BadInput(f"attack '{name}' has no parameter '{key}'; valid: {listed}")
    try:
        return TypeAdapter(cls).validate_python(params)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"attack '{name}', parameter '{place}': {first['msg']}") from error


def parse_spec(spec: str) -> Attack:
    """The attack that `name` or `name:key=value,...` describes; values are TOML.

    Raises:
        BadInput: as `load`, or parameters that are not TOML.
    """
    name, _, text = spec.partition(":")
    try:
        params = tomllib.loads(f"params = {{{text}}}")["params"]
    except tomllib.TOMLDecodeError as error:
        raise BadInput(
            f"attack '{spec}': the parameters after ':' must be key=value,... with TOML values "
            f"({error})"
        ) from error
    return load(name, **params)


def params_of(attack: Attack) -> Mapping[str, Any]:
    """The attack's parameters as JSON values; `load(attack.name, **params)` rebuilds it."""
    return cast(Mapping[str, Any], TypeAdapter(type(attack)).dump_python(attack, mode="json"))
