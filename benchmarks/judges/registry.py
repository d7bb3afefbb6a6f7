"""Judges by name: the shipped ones, and those of installed packages."""

from __future__ import annotations

from collections.abc import Sequence

from attacks.core.behavior import Behavior
from attacks.core.lookup.plugins import Registry
from attacks.core.lookup.specs import build, split
from benchmarks.judges.judge import Judge

JUDGES: Registry[Judge] = Registry(
    "judge",
    "reroute_bench.judges",
    "benchmarks.judges.judge:Judge",
    {
        "reference": "benchmarks.judges.reference:Reference",
        "phrases": "benchmarks.judges.phrases:Phrases",
        "target": "benchmarks.judges.target:Target",
        "guard": "benchmarks.judges.guard:Guard",
        "classifier": "benchmarks.judges.classifier:Classifier",
        "rubric": "benchmarks.judges.rubric:Rubric",
        "judgezoo": "benchmarks.judges.judgezoo:JudgeZoo",
        "vote": "benchmarks.judges.vote:Vote",
    },
)


def available() -> dict[str, type[Judge]]:
    """Every judge class by name."""
    return JUDGES.all()


def load_judge(spec: str) -> Judge:
    """The judge that `name` or `name:key=value,...` describes; strings need no quotes.

    Raises:
        BadInput: as `Registry.find`; parameters that are not TOML, unknown ones, or values of the
            wrong type.
    """
    name, params = split("judge", spec)
    return build(f"judge '{name}'", JUDGES.find(name), params, name=name)


def default_judge(behaviors: Sequence[Behavior]) -> str:
    """`reference` where each of the behaviours that are attacked has one, else `phrases`.

    The harmful ones are attacked, or all of them in a set without harmful ones.
    """
    attacked = [row for row in behaviors if row.harmful] or behaviors
    return "reference" if all(row.reference for row in attacked) else "phrases"
