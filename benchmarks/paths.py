"""Where the shipped data lies, in a checkout and in an installed wheel alike."""

from __future__ import annotations

import re
from pathlib import Path


def data_dir() -> Path:
    """The folder with `behaviors/`, `suites/` and `pocket/`.

    A wheel carries it inside this package; in a checkout it stands beside the package.
    """
    here = Path(__file__).resolve().parent
    packaged = here / "data"
    return packaged if packaged.is_dir() else here.parent / "data"


def folder_name(model: str) -> str:
    """A model's name as a folder's."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", model).strip("-.") or "model"
