"""The commands that rows came from."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from functools import cache
from typing import Any

from attacks.registry import describe
from benchmarks.boards.tables import flat
from benchmarks.defenses.registry import DEFENSES
from benchmarks.inputs.suites import Suite
from benchmarks.report.data import Line

#: Flags of `run` that are not called as the field, and those that take all values at once.
_FLAGS = {"models": "model", "attacks": "attack", "judges": "judge", "seeds": "seed"}
_TOGETHER = ("seeds", "adaptivity")


def spec(attack: str, params: Mapping[str, Any], kind: str = "attack") -> str:
    """The attack as `--attack` takes it, without parameters that have their defaults.

    Or the defence as `--defense` does, with `kind` "defense".
    """
    names = attack.split("+")
    if len(names) > 1:
        return "+".join(spec(name, params.get(name, {}), kind) for name in names)
    _, defaults = _known(kind).get(attack, (False, {}))
    changed = [
        f"{key}={_toml(value)}"
        for key, value in flat(params).items()
        if value is not None and (key not in defaults or _plain(defaults[key]) != value)
    ]
    return attack + (":" if changed else "") + ",".join(changed)


def commands(line: Line, suites: Mapping[str, Suite]) -> list[str]:
    """The commands that ran a row: one, unless its cells are of several runs.

    Older records do not say what was run; there names of sets that were chosen are placeholders.

    Args:
        line: the row with its records.
        suites: what was run, by hash.
    """
    row = line.row
    if row.origin_model:
        words = ["reroute", "transfer", "DIR", "--to", row.model]
        return [shlex.join([*words, *(("--judge", row.judge) if row.judge else ())])]
    ran = [suites[name] for name in {e.record.suite: 0 for e in line.entries} if name in suites]
    own: dict[str, Any] = {
        "models": (row.model,),
        "attacks": (spec(row.attack, row.params),),
        "defense": (spec(row.defense, row.defense_params, "defense"),) if row.defense else (),
        "adaptivity": (row.adaptivity,) if row.defense else Suite.adaptivity,
        # Both are among the parameters of the attack.
        "preset": None,
        "steps": None,
    }
    found = dict.fromkeys(
        _run(dataclasses.replace(suite, **own)) for suite in ran or [_recorded(line)]
    )
    how = f"--workers {row.concurrency}" + (f" --together {row.together}" * (row.together > 1))
    return [f"{words} {how} --out DIR" for words in found]


def _recorded(line: Line) -> Suite:
    """What was run, as far as records without their suite tell."""
    row, record = line.row, line.entries[0].record
    part = row.attack.split("+")
    needs_train = any(_known("attack").get(name, (False, {}))[0] for name in part)
    return Suite(
        name="",
        models=(row.model,),
        attacks=(row.attack,),
        behaviors="NAME_OR_FILE",
        train="NAME_OR_FILE" if needs_train else None,
        judges=(row.judge,) if row.judge else (),
        seeds=tuple(sorted({entry.record.seed for entry in line.entries})),
        stop="first-success" if row.stop == "first-success" else "never",
        attempts=row.attempts,
        seconds=record.budget_seconds,
        max_new_tokens=record.max_new_tokens or Suite.max_new_tokens,
        samples=record.samples,
        temperature=record.temperature,
        top_p=record.top_p,
        system=record.system,
        harmless=any(not entry.record.harmful for entry in line.entries),
        dtype=row.dtype or "auto",
    )


def _run(suite: Suite) -> str:
    """`reroute run` with the settings of `suite`; those that are not given are left out."""
    words = ["reroute", "run"]
    for field in dataclasses.fields(Suite):
        value = getattr(suite, field.name)
        if field.name == "name" or value == field.default:
            continue
        flag = f"--{_FLAGS.get(field.name, field.name.replace('_', '-'))}"
        if isinstance(value, bool):
            words.append(flag)
        elif field.name in _TOGETHER:
            words += [flag, *map(str, value)]
        else:
            many = value if isinstance(value, tuple) else (value,)
            words += [word for each in many for word in (flag, str(each))]
    return shlex.join(words)


@cache
def _known(kind: str) -> dict[str, tuple[bool, dict[str, Any]]]:
    """Whether the installed attacks, or defences, need training behaviours, and their defaults."""
    table = DEFENSES.describe() if kind == "defense" else describe()
    return {
        name: (bool(found.constants.get("needs_train")), flat(found.params))
        for name, found in table.items()
    }


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(value, default=repr))


def _toml(value: Any) -> str:
    # JSON's strings, numbers and lists are TOML's too.
    return json.dumps(value)
