"""Attacks by name: the shipped ones, loaded on demand, and those of installed packages."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from attacks.attack import Attack
from attacks.composed import Composed
from attacks.core.errors import BadInput
from attacks.core.plugins import Registry

ATTACKS = Registry(
    "attack",
    "reroute_bench.attacks",
    Attack,  # type: ignore[type-abstract]
    {
        "direct": "attacks.direct:Direct",
        "prefill": "attacks.prefill:Prefill",
        "random-search": "attacks.random_search:RandomSearch",
        "gcg": "attacks.gcg:GCG",
        "pgd": "attacks.pgd:PGD",
        "ssr-probe": "attacks.ssr:ProbeSSR",
        "ssr-steering": "attacks.ssr:SteeringSSR",
        "ssr-attention": "attacks.ssr:AttentionSSR",
        "soft-prompt": "attacks.soft_prompt:SoftPrompt",
        "refusal-tokens": "attacks.refusal_tokens:RefusalTokens",
        "control-tokens": "attacks.control_tokens:ControlTokenSteering",
        "refusal-direction": "attacks.refusal_direction:RefusalDirection",
        "head-ablation": "attacks.head_ablation:HeadAblation",
        "refusal-direction-weights": "attacks.refusal_direction:RefusalDirectionWeights",
        "abliteration": "attacks.abliteration:Abliteration",
        "experts": "attacks.experts:Experts",
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

    Several names joined by `+` are a combination (see `Composed`); its parameters are those of its
    parts, by name: `load("gcg+refusal-direction", **{"gcg": {"steps": 8}})`.

    Raises:
        BadInput: unknown name or parameter, a value of the wrong type, or parts that do not go
            together.
    """
    if "+" in name:
        parts = name.split("+")
        _refuse_unknown(name, params, parts)
        return Composed(tuple(load(part, **params.get(part, {})) for part in parts))
    cls = ATTACKS.find(name)
    _refuse_unknown(name, params, [field.name for field in dataclasses.fields(cls)])
    try:
        return TypeAdapter(cls).validate_python(params)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, BadInput):
            raise cause from error
        place = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"attack '{name}', parameter '{place}': {first['msg']}") from error


def _refuse_unknown(name: str, params: Mapping[str, Any], valid: Sequence[str]) -> None:
    for key in params:
        if key not in valid:
            listed = ", ".join(valid) or "none"
            raise BadInput(f"attack '{name}' has no parameter '{key}'; valid: {listed}")


def parse_spec(spec: str) -> Attack:
    """The attack that `name` or `name:key=value,...` describes; values are TOML.

    Several of these joined by `+` are a combination: `gcg:steps=8+refusal-direction`.

    Raises:
        BadInput: as `load`, or parameters that are not TOML.
    """
    parts = _parts(spec)
    if len(parts) > 1:
        return Composed(tuple(parse_spec(part) for part in parts))
    name, _, text = spec.partition(":")
    try:
        params = tomllib.loads(f"params = {{{text}}}")["params"]
    except tomllib.TOMLDecodeError as error:
        raise BadInput(
            f"attack '{spec}': the parameters after ':' must be key=value,... with TOML values "
            f"({error})"
        ) from error
    return load(name, **params)


def _parts(spec: str) -> list[str]:
    """`spec` split at each `+` outside brackets and quotes that is not the sign of a number."""
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


def params_of(attack: Attack) -> Mapping[str, Any]:
    """The attack's parameters as JSON values; `load(attack.name, **params)` rebuilds it.

    Those of a combination are nested under the names of its parts.
    """
    if isinstance(attack, Composed):
        return {part.name: params_of(part) for part in attack.parts}
    return cast(Mapping[str, Any], TypeAdapter(type(attack)).dump_python(attack, mode="json"))
