"""Attacks by name: the shipped ones, loaded on demand, and those of installed packages."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from typing import Any, cast

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
        "pgd": "attacks.pgd:PGD",
        "ssr-probe": "attacks.ssr:ProbeSSR",
        "ssr-steering": "attacks.ssr:SteeringSSR",
        "ssr-attention": "attacks.ssr:AttentionSSR",
        "soft-prompt": "attacks.soft_prompt:SoftPrompt",
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
