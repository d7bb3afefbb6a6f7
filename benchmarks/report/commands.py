"""The commands that rows came from, as far as records tell."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from functools import cache
from typing import Any

from attacks.registry import describe
from benchmarks.boards.tables import flat
from benchmarks.defenses.registry import DEFENSES
from benchmarks.report.data import Line


def spec(attack: str, params: Mapping[str, Any], kind: str = "attack") -> str:
    """The attack as `--attack` takes it, without parameters that have their defaults.

    Or the defence as `--defense` does, with `kind` "defense".
    """
    names = attack.split("+")
    if len(names) > 1:
        return "+".join(spec(name, params.get(name, {}), kind) for name in names)
    defaults = _known(kind).get(attack, {})
    changed = [
        f"{key}={_toml(value)}"
        for key, value in flat(params).items()
        if value is not None and (key not in defaults or _plain(defaults[key]) != value)
    ]
    return attack + (":" if changed else "") + ",".join(changed)


def command(line: Line) -> str:
    """The command of a row. Records do not name the files of behaviours, nor the system prompt."""
    row, record = line.row, line.entries[0].record
    seeds = sorted({entry.record.seed for entry in line.entries})
    words = ["reroute", "run", "--model", row.model, "--attack", spec(row.attack, row.params)]
    if row.defense:
        words += ["--defense", spec(row.defense, row.defense_params, "defense")]
        words += ["--adaptivity", row.adaptivity]
    words += ["--behaviors", "NAME_OR_FILE", "--judge", row.judge or "NAME"]
    words += ["--seed", *map(str, seeds), "--stop", row.stop, "--attempts", str(row.attempts)]
    if record.budget_seconds:
        words += ["--seconds", f"{record.budget_seconds:g}"]
    words += ["--workers", str(row.concurrency), "--dtype", row.dtype or "auto", "--out", "DIR"]
    return shlex.join(words)


@cache
def _known(kind: str) -> dict[str, dict[str, Any]]:
    """The defaults of the installed attacks, or defences."""
    table = DEFENSES.describe() if kind == "defense" else describe()
    return {name: flat(found.params) for name, found in table.items()}


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(value, default=repr))


def _toml(value: Any) -> str:
    # JSON's strings, numbers and lists are TOML's too.
    return json.dumps(value)
