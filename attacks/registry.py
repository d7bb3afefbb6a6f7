"""Attacks by name: the shipped ones, loaded on demand, and those of installed packages."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from attacks.attack import Attack
from attacks.core.errors import BadInput
from attacks.core.plugins import Registry

ATTACKS = Registry(
    "attack",
    "reroute_bench.attacks",
    Attack,  # type: ignore[type-abstract]
    {
        "direct": "attacks.direct:Direct",
        "random-search": "attacks.random_search:RandomSearch",
        "gcg": "attacks.gcg:GCG",
        "gcg-refusal": "attacks.gcg:RefusalGCG",
        "universal-gcg": "attacks.universal_gcg:UniversalGCG",
        "ssr-probe": "attacks.ssr:ProbeSSR",
        "ssr-steering": "attacks.ssr:SteeringSSR",
        "ssr-attention": "attacks.ssr:AttentionSSR",
        "refusal-tokens": "attacks.refusal_tokens:RefusalTokens",
        "refusal-direction": "attacks.refusal_direction:RefusalDirection",
    },
)


def sources() -> dict[str, str]:
    """Attack names and the `module:class` behind each, without importing any of them."""
    return ATTACKS.sources()


def available() -> dict[str, type[Attack]]:
    """Every attack class by name."""
    return ATTACKS.all()


def load(name: str, **params: Any) -> Attack:
    """The attack `name` with `params`, its dataclass fields.

    Raises:
        BadInput: unknown name or parameter, or a value of the wrong type.
    """
    cls = ATTACKS.find(name)
    _check_names(f"attack '{name}'", cls, params)
    try:
        return TypeAdapter(cls).validate_python(params)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        who = f"attack '{name}', parameter '{place}'" if place else f"attack '{name}'"
        raise BadInput(f"{who}: {first['msg'].removeprefix('Value error, ')}") from error


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
    """The attack's parameters as JSON values; `load(attack.name, **params)` rebuilds it.

    Of a group of options (a field that is a dataclass itself) only what differs from the defaults
    is there, and a group without any such difference is left out. So a new option changes the
    identity of no attack that does not use it.
    """
    adapter = TypeAdapter(type(attack))
    every = adapter.dump_python(attack, mode="json")
    changed = adapter.dump_python(attack, mode="json", exclude_defaults=True)
    groups = _groups(type(attack))
    kept = {key: changed.get(key, {}) if key in groups else value for key, value in every.items()}
    return {key: value for key, value in kept.items() if key not in groups or value}


def options_of(cls: type[Attack]) -> dict[str, Mapping[str, Any]]:
    """The groups of options of an attack: the name and the default of each option in them."""
    return {
        name: TypeAdapter(group).dump_python(group(), mode="json")
        for name, group in _groups(cls).items()
    }


def _groups(cls: Any) -> dict[str, type[Any]]:
    """The fields that hold a group of options, and the dataclass of each."""
    made: dict[str, Any] = {each.name: each.default_factory for each in dataclasses.fields(cls)}
    return {
        name: factory
        for name, factory in made.items()
        if isinstance(factory, type) and dataclasses.is_dataclass(factory)
    }


def _check_names(who: str, cls: Any, params: Mapping[str, Any], path: str = "") -> None:
    """Make sure that all parameters exist, those in groups of options too.

    Raises:
        BadInput: the first that does not.
    """
    valid, groups = [field.name for field in dataclasses.fields(cls)], _groups(cls)
    for key, value in params.items():
        if key not in valid:
            listed = ", ".join(path + name for name in valid) or "none"
            raise BadInput(f"{who} has no parameter '{path}{key}'; valid: {listed}")
        if key in groups and isinstance(value, Mapping):
            _check_names(who, groups[key], value, f"{path}{key}.")
