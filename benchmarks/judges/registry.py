"""Judges by name: the shipped ones, and those of installed packages."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from benchmarks.judges.judge import Judge

#: Entry-point group in which other packages register judges.
GROUP = "reroute_bench.judges"

_BUILT_IN = {
    "reference": "benchmarks.judges.reference:Reference",
    "phrases": "benchmarks.judges.phrases:Phrases",
}


def sources() -> dict[str, str]:
    """Judge names and the `module:class` behind each, without importing any of them.

    Raises:
        BadInput: two packages, or a package and the suite, claim the same name.
    """
    table = dict(_BUILT_IN)
    for point in entry_points(group=GROUP):
        if table.setdefault(point.name, point.value) != point.value:
            raise BadInput(
                f"judge name '{point.name}' is claimed twice: {table[point.name]} and "
                f"{point.value}; uninstall one of the packages"
            )
    return table


def judge_class(name: str) -> type[Judge]:
    """The class registered as `name`.

    Raises:
        BadInput: unknown name, or a plugin that does not load or is no judge.
    """
    table = sources()
    if name not in table:
        raise BadInput(f"unknown judge '{name}'; valid: {', '.join(sorted(table))}")
    try:
        loaded = EntryPoint(name, table[name], GROUP).load()
    except (ImportError, AttributeError) as error:
        raise BadInput(f"judge '{name}' ({table[name]}) does not load: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Judge)):
        raise BadInput(f"judge '{name}' ({table[name]}) is not a subclass of Judge")
    return loaded


def available() -> dict[str, type[Judge]]:
    """Every judge class by name."""
    return {name: judge_class(name) for name in sorted(sources())}


def load_judge(name: str) -> Judge:
    """The judge `name`.

    Raises:
        BadInput: as `judge_class`.
    """
    return judge_class(name)()


def default_judge(behaviors: Sequence[Behavior]) -> str:
    """`reference` where each of the behaviours that are attacked has one, else `phrases`.

    The harmful ones are attacked, or all of them in a set without harmful ones.
    """
    attacked = [row for row in behaviors if row.harmful] or behaviors
    return "reference" if all(row.reference for row in attacked) else "phrases"
