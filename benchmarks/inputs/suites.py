"""Suites: what a run consists of, as a value and as a TOML file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from attacks.core.errors import BadInput, suggestion
from attacks.core.parsing import from_toml
from attacks.core.template import DATE
from attacks.registry import params_of, parse_spec
from benchmarks.paths import data_dir
from benchmarks.storage.folders import bounded
from benchmarks.storage.records import digest
from benchmarks.storage.store import SUITES, append_notes, read_notes

if TYPE_CHECKING:
    from attacks.attack import Attack

Count = Annotated[int, Field(ge=1)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]

#: For a first look on a CPU, for a comparison on one GPU, and as published (Zou et al. 2023).
PRESETS = {
    "quick": {"steps": 16, "width": 64, "topk": 64, "slots": 10},
    "standard": {"steps": 100, "width": 256, "topk": 256, "slots": 20},
    "paper": {"steps": 500, "width": 512, "topk": 256, "slots": 20},
}


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Suite:
    """Models x attacks x behaviours x seeds, and how each cell is run and judged."""

    name: str
    models: Names
    """Shipped names, folders or Hub ids."""
    attacks: Names
    """`name` or `name:key=value,...`; see `attacks.registry.parse_spec`."""
    behaviors: str
    train: str | None = None
    defense: tuple[str, ...] = ()
    """Defences of the models, each in turn: `name` or `name:key=value,...`, joined by `+`; "none"
    is the model without any, and so is an empty list."""
    adaptivity: Annotated[tuple[Literal["static", "adaptive"], ...], Field(min_length=1)] = (
        "static",
        "adaptive",
    )
    """Whether attacks know of the defence; see `stances.Adaptivity`."""
    judges: tuple[str, ...] = ()
    """Empty: `benchmarks.judges.default_judge`."""
    limit: Count | None = None
    """Number of attacked behaviours, in file order."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    preset: Literal["quick", "standard", "paper"] | None = None
    """Sizes of the searches where an attack's parameters do not set them; see `PRESETS`."""
    steps: Count | None = None
    """Sets `steps` of every attack that has it, and so is part of the attack's identity."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Budget of search and verification for each cell; no part of a cell's identity."""
    stop: Literal["never", "first-success"] = "never"
    attempts: Count = 1
    """Number of candidates that are answered and judged."""
    max_new_tokens: Count = 64
    samples: Annotated[int, Field(ge=0)] = 0
    """Sampled answers to the best candidate, in addition to the greedy one."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of sampled answers; the first one is always greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    system: str | None = None
    harmless: bool = False
    """Also answer the harmless twins of the attacked behaviours, by attacks that do not search."""
    device: str = "auto"
    device_map: str | None = None
    """How one model is spread over several devices, such as "auto"; see `Model.load`."""
    dtype: str = "auto"
    date: str = DATE
    """YYYY-MM-DD, the date for chat templates that insert today's."""


_SUITE = TypeAdapter(Suite)


def suite_from(values: Mapping[str, Any], source: str) -> Suite:
    """The suite with these fields, checked.

    Raises:
        BadInput: unknown or missing key, wrong type or value; the line begins with `source`.
    """
    try:
        # JSON, because there a list is a sequence of any kind while types are still strict.
        return _SUITE.validate_json(json.dumps(dict(values), default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            valid = ", ".join(field.name for field in dataclasses.fields(Suite))
            close = suggestion(place, valid.split(", "))
            raise BadInput(f"{source}: unknown key '{place}'; valid: {valid}{close}") from error
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise BadInput(f"{source}: '{place}': {reason}") from error


def load_suite(name_or_path: str) -> Suite:
    """The shipped suite of this name, or the one in this TOML file.

    Raises:
        BadInput: no such suite, malformed TOML (its line is named), unknown key or wrong type.
    """
    shipped = _shipped()
    path = shipped.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        raise BadInput(
            f"unknown suite '{name_or_path}'; valid: {', '.join(shipped)}, or a TOML file"
            f"{suggestion(name_or_path, shipped)}"
        )
    bounded(path)
    try:
        values = from_toml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path}: not TOML: {error}") from error
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from error
    return suite_from({"name": path.stem, **values}, str(path))


def note_suite(folder: Path, suite: Suite) -> str:
    """Appends what is run to the results folder unless it is there, and returns its hash.

    Raises:
        BadInput: the folder cannot be written.
    """
    content = dataclasses.asdict(suite)
    name = digest(content)
    append_notes(folder / SUITES, {name: content})
    return name


def noted_suites(folder: Path) -> dict[str, Suite]:
    """What was run into a results folder, by hash (`Record.suite`).

    Raises:
        BadInput: a line that is no suite.
    """
    path = folder / SUITES
    return {name: suite_from(row, str(path)) for name, row in read_notes(path).items()}


def suite_names() -> dict[str, str]:
    """The shipped suites and what each is for: the comment on the first line of its file."""
    return {
        name: path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
        for name, path in _shipped().items()
    }


def suite_attacks(suite: Suite) -> tuple[Attack, ...]:
    """The suite's attacks, `steps` applied, each one once.

    Raises:
        BadInput: as `attacks.registry.parse_spec`.
    """
    unique: dict[str, Attack] = {}
    for spec in suite.attacks:
        attack = parse_spec(spec, PRESETS[suite.preset] if suite.preset else None)
        if suite.steps is not None:
            attack = _with_steps(attack, suite.steps)
        unique.setdefault(attack_hash(attack), attack)
    return tuple(unique.values())


def _with_steps(attack: Attack, steps: int) -> Attack:
    """The attack with `steps` set, also in its parts, where there is such a parameter."""
    from attacks.composed import Composed  # Here, for it brings torch along.

    if isinstance(attack, Composed):
        return Composed(tuple(_with_steps(part, steps) for part in attack.parts))
    has = any(field.name == "steps" for field in dataclasses.fields(attack))
    return dataclasses.replace(attack, **{"steps": steps}) if has else attack


def attack_hash(attack: Attack) -> str:
    """Hash of the attack's name and parameters: its identity on a board."""
    return digest({"attack": attack.name, "params": params_of(attack)})


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in sorted((data_dir() / "suites").glob("*.toml"))}
