"""Models by name: the shipped ones, and whatever else `attacks.core.model.sources` finds."""

from __future__ import annotations

import json
from pathlib import Path

from attacks.core.errors import BadInput, suggestion
from benchmarks.inputs import village
from benchmarks.paths import data_dir


def folder() -> Path:
    """Where the pocket models lie, one folder each."""
    return data_dir() / "pocket" / "models"


def pocket_names() -> dict[str, str]:
    """The pocket models and their summaries, from the `summary` of each `card.json`."""
    found = sorted(path.parent for path in folder().glob("*/config.json"))
    return {path.name: _summary(path) for path in found}


def village_names() -> dict[str, str]:
    """The village models, whose base is fetched on first use, and their summaries."""
    found = sorted(path.parent for path in village.folder().glob("*/card.json"))
    return {path.name: _summary(path) for path in found}


def names() -> dict[str, str]:
    """All models that come with the suite, and their summaries."""
    return pocket_names() | village_names()


def resolve(name: str) -> str:
    """What to load for `name`: a shipped model's folder, or `name` itself (see `find_source`).

    Raises:
        BadInput: `name` is written like a path, and there is no such folder; or the
            base of a village model cannot be fetched.
    """
    if name in pocket_names():
        return str(folder() / name)
    if name in village_names():
        return str(village.fetched(name))
    path = Path(name).expanduser()
    if name and path.is_dir():
        return str(path)
    if name.lower().endswith(".gguf"):
        return str(path)
    if path.is_file():
        raise BadInput(f"model '{name}' is a file; name the folder that holds config.json")
    # A Hub id is `name` or `owner/name`; everything else can only have been meant as a path.
    if not name or name[0] in "./~" or name.count("/") > 1 or name.endswith("/"):
        shipped = names()
        raise BadInput(
            f"model '{name}': no such folder; shipped models: {', '.join(shipped)}"
            f"{suggestion(name, shipped)}"
        )
    return name


def _summary(path: Path) -> str:
    card = path / "card.json"
    return str(json.loads(card.read_text("utf-8")).get("summary", "")) if card.is_file() else ""
