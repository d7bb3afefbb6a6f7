"""Behaviour sets by name: shipped files, registered public sets, and files of one's own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput, suggestion
from benchmarks.inputs import models
from benchmarks.inputs.behavior_files import SUFFIXES, read_file
from benchmarks.inputs.hub_sets import is_hub_set, load_hub
from benchmarks.inputs.public_sets import PUBLIC_SETS, load_public
from benchmarks.paths import data_dir

_PART = re.compile(r"(.+)\[(\d*):(\d*)\]")


def names() -> dict[str, str]:
    """The sets that can be named and a line about each: shipped ones, then public ones."""
    shipped = {name: _counts(read_file(path)) for name, path in _shipped().items()}
    return shipped | {name: entry.summary for name, entry in PUBLIC_SETS.items()}


def load_behaviors(name_or_file: str) -> list[Behavior]:
    """The behaviours of a shipped or public set, a file, a data set on the Hub, or of several.

    Args:
        name_or_file: a name, a file (see `behavior_files.SUFFIXES`), or `owner/name:split` on the
            Hub (see `hub_sets.load_hub`); `NAME[a:b]` for a part of it, which counts the rows
            that are nobody's twin, and the twins go with them; or several of these, joined by "+".

    Raises:
        BadInput: unknown name, a file that does not hold behaviours, a public set that cannot be
            had now, or sets that share an id; the line says why.
    """
    if "+" in name_or_file and not Path(name_or_file).exists():
        rows = [row for name in name_or_file.split("+") for row in load_behaviors(name)]
        ids = [row.id for row in rows]
        if len(set(ids)) < len(ids):
            twice = next(id for id, count in Counter(ids).items() if count > 1)
            raise BadInput(f"behaviour sets '{name_or_file}': the id '{twice}' is in two of them")
        return rows
    if (part := _PART.fullmatch(name_or_file)) and not Path(name_or_file).exists():
        name, start, stop = part.groups()
        return _part(load_behaviors(name), int(start or 0), int(stop) if stop else None)
    shipped = _shipped()
    if name_or_file in shipped:
        return read_file(shipped[name_or_file])
    if name_or_file in PUBLIC_SETS:
        return load_public(name_or_file)
    path = Path(name_or_file).expanduser()
    if path.suffix.lower() in SUFFIXES or path.exists():
        return read_file(path)
    if is_hub_set(name_or_file):
        return load_hub(name_or_file)
    valid = ", ".join([*shipped, *PUBLIC_SETS])
    raise BadInput(
        f"unknown behaviour set '{name_or_file}'; valid: {valid}, a file ({', '.join(SUFFIXES)}), "
        f"or owner/name:split on the Hub{suggestion(name_or_file, [*shipped, *PUBLIC_SETS])}"
    )


def shipped_behaviors() -> list[Behavior]:
    """The behaviours of all shipped sets."""
    return [row for path in _shipped().values() for row in read_file(path)]


def chosen_sets(
    command: str, model: str, given: tuple[str | None, str | None], shipped: tuple[str, str]
) -> tuple[str, str]:
    """The training and the test set of a command: those given, or for pocket models the shipped.

    Raises:
        BadInput: one is not given, and the model is not a pocket model.
    """
    train, test = given
    if model in models.pocket_names():
        train, test = train or shipped[0], test or shipped[1]
    if train is None or test is None:
        sets = {"--train NAME_OR_FILE": train, "--behaviors NAME_OR_FILE": test}
        missing = " and ".join(flag for flag, value in sets.items() if value is None)
        raise BadInput(f"{command}: '{model}' is not a shipped pocket model: give {missing}")
    return train, test


def _part(rows: Sequence[Behavior], start: int, stop: int | None) -> list[Behavior]:
    twins = {row.twin for row in rows}
    counted = [row for row in rows if row.id not in twins][start:stop]
    wanted = {row.id for row in counted} | {row.twin for row in counted}
    return [row for row in rows if row.id in wanted]


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in sorted((data_dir() / "behaviors").glob("*.jsonl"))}


def _counts(rows: Sequence[Behavior]) -> str:
    harmful = sum(row.harmful for row in rows)
    return f"{harmful} harmful, {len(rows) - harmful} harmless behaviours (shipped)"
