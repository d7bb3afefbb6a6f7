"""Attacks by name: the shipped ones, loaded on demand, and those of installed packages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from attacks.core.lookup.declared import Declared
from attacks.core.lookup.plugins import Registry
from attacks.core.lookup.specs import build, option_groups, refuse_unknown, split, summands

if TYPE_CHECKING:
    from attacks.attack import Attack

ATTACKS: Registry[Attack] = Registry(
    "attack",
    "reroute_bench.attacks",
    "attacks.attack:Attack",
    {
        "direct": "attacks.direct:Direct",
        "prefill": "attacks.prefill:Prefill",
        "replay": "attacks.replay:Replay",
        "random-search": "attacks.random_search:RandomSearch",
        "gcg": "attacks.gcg:GCG",
        "gcg-refusal": "attacks.gcg:RefusalGCG",
        "strong": "attacks.strong:Strong",
        "universal-gcg": "attacks.universal_gcg:UniversalGCG",
        "pgd": "attacks.pgd:PGD",
        "ssr-probe": "attacks.ssr:ProbeSSR",
        "ssr-steering": "attacks.ssr:SteeringSSR",
        "ssr-latents": "attacks.ssr:LatentSSR",
        "ssr-attention": "attacks.ssr:AttentionSSR",
        "soft-prompt": "attacks.soft_prompt:SoftPrompt",
        "refusal-tokens": "attacks.refusal_tokens:RefusalTokens",
        "control-tokens": "attacks.control_tokens:ControlTokenSteering",
        "refusal-addition": "attacks.refusal_addition:RefusalAddition",
        "refusal-direction": "attacks.refusal_direction:RefusalDirection",
        "head-ablation": "attacks.head_ablation:HeadAblation",
        "refusal-subspace": "attacks.refusal_subspace:RefusalSubspace",
        "refusal-direction-weights": "attacks.refusal_direction:RefusalDirectionWeights",
        "refusal-subspace-weights": "attacks.refusal_subspace:RefusalSubspaceWeights",
        "abliteration": "attacks.abliteration:Abliteration",
        "experts": "attacks.experts:Experts",
    },
)


def sources() -> dict[str, str]:
    """Attack names and the `module:class` behind each, without importing any of them."""
    return ATTACKS.sources()


def describe() -> dict[str, Declared]:
    """What every attack declares, by name: imports none of the shipped ones."""
    return ATTACKS.describe()


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
        from attacks.composed import Composed  # Here, for it brings torch along.

        parts = name.split("+")
        refuse_unknown(f"attack '{name}'", params, parts)
        return Composed(tuple(load(part, **params.get(part, {})) for part in parts))
    return build(f"attack '{name}'", ATTACKS.find(name), params, name=name)


def parse_spec(spec: str, numbers: Mapping[str, Any] | None = None) -> Attack:
    """The attack that `name` or `name:key=value,...` describes; values are TOML.

    Several of these joined by `+` are a combination: `gcg:steps=8+refusal-direction`. `numbers`
    replace the defaults of search parameters that an attack has.

    Raises:
        BadInput: as `load`, or parameters that are not TOML.
    """
    parts = summands(spec)
    if len(parts) > 1:
        from attacks.composed import Composed  # Here, for it brings torch along.

        return Composed(tuple(parse_spec(part, numbers) for part in parts))
    name, params = split("attack", spec)
    cls = ATTACKS.find(name)
    known = {field.name for field in dataclasses.fields(cls)} if cls.searches else set()
    defaults = {key: value for key, value in (numbers or {}).items() if key in known}
    return load(name, **{**defaults, **params})


def params_of(attack: Attack) -> Mapping[str, Any]:
    """The attack's parameters as JSON values; `load(attack.name, **params)` rebuilds it.

    Of a group of options (a field that is a dataclass itself) only what differs from the defaults
    is included, and a group without any such difference is left out. So a new option does not
    change the identity of attacks that do not use it. Parameters of a combination are nested under
    the names of its parts.
    """
    from attacks.composed import Composed  # Here, for it brings torch along.

    if isinstance(attack, Composed):
        return {part.name: params_of(part) for part in attack.parts}
    adapter = TypeAdapter(type(attack))
    every = adapter.dump_python(attack, mode="json")
    changed = adapter.dump_python(attack, mode="json", exclude_defaults=True)
    groups = option_groups(type(attack))
    kept = {key: changed.get(key, {}) if key in groups else value for key, value in every.items()}
    return {key: value for key, value in kept.items() if key not in groups or value}
