"""A new attack or defence as an installable package: what `reroute new-attack` writes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from attacks.core.errors import BadInput
from attacks.registry import ATTACKS
from benchmarks.defenses.registry import DEFENSES

#: The template's files, and what they are called in the package.
_ATTACK = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "attack.py": "{module}.py",
    "test.py": "test_{module}.py",
}
_DEFENSE = {
    "pyproject_defense.toml": "pyproject.toml",
    "README_defense.md": "README.md",
    "defense.py": "{module}.py",
    "test_defense.py": "test_{module}.py",
}


def new_attack(name: str, folder: Path | None = None) -> list[Path]:
    """Writes a package with a working attack called `name` and its test; returns the files.

    The folder is made if need be and is called after the package unless it is given.

    Raises:
        BadInput: a name that is malformed or taken, or a file that is there already.
    """
    return _written("attack", name, folder, ATTACKS.sources(), _ATTACK)


def new_defense(name: str, folder: Path | None = None) -> list[Path]:
    """The same with a working defence.

    Raises:
        BadInput: as `new_attack`.
    """
    return _written("defence", name, folder, DEFENSES.sources(), _DEFENSE)


def _written(
    kind: str,
    name: str,
    folder: Path | None,
    taken: Mapping[str, str],
    names: Mapping[str, str],
) -> list[Path]:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise BadInput(
            f"{kind} name '{name}': use lower-case letters, digits and single hyphens, "
            "beginning with a letter"
        )
    if name in taken:
        raise BadInput(
            f"there is a{'n' * (kind == 'attack')} {kind} called '{name}' already ({taken[name]})"
        )
    words = {
        "name": name,
        "distribution": f"reroute-{name}",
        "module": f"reroute_{name.replace('-', '_')}",
        "classname": "".join(part.capitalize() for part in name.split("-")),
    }
    target = folder or Path(words["distribution"])
    template = files("benchmarks") / "template"
    texts = {
        target / written.format(**words): Template(
            (template / f"{source}.template").read_text("utf-8")
        ).substitute(words)
        for source, written in names.items()
    }
    for path in (target, *texts):
        if path.exists() and not (path == target and path.is_dir()):
            raise BadInput(f"'{path}' exists already and is left unchanged; name another folder")
    target.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, "utf-8")
    return list(texts)
