"""Defences by name: the shipped ones, and those of installed packages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from attacks.core.lookup.plugins import Registry
from attacks.core.lookup.specs import build, split, summands
from benchmarks.storage.records import digest

if TYPE_CHECKING:
    from benchmarks.defenses.defense import Defense

DEFENSES: Registry[Defense] = Registry(
    "defence",
    "reroute_bench.defenses",
    "benchmarks.defenses.defense:Defense",
    {
        "perplexity": "benchmarks.defenses.perplexity:Perplexity",
        "latent-guard": "benchmarks.defenses.latent_guard:LatentGuard",
        "erase-and-check": "benchmarks.defenses.erase_and_check:EraseAndCheck",
        "smooth-llm": "benchmarks.defenses.smooth_llm:SmoothLLM",
        "system-prompt": "benchmarks.defenses.reminders:SystemPrompt",
        "steering": "benchmarks.defenses.steering:ConditionalSteering",
        "subspace-filter": "benchmarks.defenses.subspace_filter:SubspaceFilter",
        "guard": "benchmarks.defenses.guard:GuardJudge",
        "cliff": "benchmarks.defenses.cliff:CliffMonitor",
        "self-reminder": "benchmarks.defenses.reminders:SelfReminder",
    },
)


def available() -> dict[str, type[Defense]]:
    """Every defence class by name."""
    return DEFENSES.all()


def load_defense(spec: str) -> Defense:
    """The defence that `name` or `name:key=value,...` describes; values are TOML.

    Several of these joined by `+` are a combination; see `Stack`.

    Raises:
        BadInput: as `Registry.find`; parameters that are not TOML, unknown ones, or values of the
            wrong type; parts that do not go together.
    """
    parts = summands(spec)
    if len(parts) > 1:
        from benchmarks.defenses.defense import Stack  # Here, for it brings torch along.

        return Stack(tuple(load_defense(part) for part in parts))
    name, params = split("defence", spec)
    return build(f"defence '{name}'", DEFENSES.find(name), params, name=name)


def rebuilt(name: str, params: Mapping[str, Any]) -> Defense:
    """The defence of these parameters, as `params_of` gives them.

    Raises:
        BadInput: as `load_defense`.
    """
    if "+" in name:
        from benchmarks.defenses.defense import Stack  # Here, for it brings torch along.

        return Stack(tuple(rebuilt(part, params.get(part, {})) for part in name.split("+")))
    return build(f"defence '{name}'", DEFENSES.find(name), params, name=name)


def params_of(defense: Defense) -> Mapping[str, Any]:
    """The defence's parameters as JSON values; those of a combination under its parts' names."""
    from benchmarks.defenses.defense import Stack  # Here, for it brings torch along.

    if isinstance(defense, Stack):
        return {part.name: params_of(part) for part in defense.parts}
    found: Mapping[str, Any] = TypeAdapter(type(defense)).dump_python(defense, mode="json")
    return found


def defense_hash(defense: Defense) -> str:
    """Hash of the defence's name and parameters: its identity on a board."""
    return digest({"defense": defense.name, "params": params_of(defense)})
