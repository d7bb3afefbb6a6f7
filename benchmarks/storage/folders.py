"""What is read: a results folder, or a file of behaviours, may come from anybody."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from attacks.core.errors import BadInput

ARTEFACTS, CHECKPOINTS = "artefacts", "checkpoints"

#: Bytes of a file that is read whole: 6 models x 10 attacks x 400 behaviours of 170 kB each.
LARGEST = 2**32


def contained(folder: Path) -> Path:
    """The folder, once it is seen that no link in it leads out of it.

    Raises:
        BadInput: the first link that does; what is read or written through it is elsewhere.
    """
    home = folder.resolve()
    for place in (folder, folder / ARTEFACTS, folder / CHECKPOINTS):
        if not place.is_dir():
            continue
        with os.scandir(place) as entries:
            links = sorted(entry.name for entry in entries if entry.is_symlink())
        for path in (place / name for name in links):
            if not path.resolve().is_relative_to(home):
                raise BadInput(
                    f"'{path}' is a link that leads out of '{folder}'; such links are not "
                    "followed: put a copy in its place if you trust it"
                )
    return folder


def bounded(path: Path) -> Path:
    """The path of a file, once it is seen to be one that can be read whole.

    Raises:
        BadInput: more than `LARGEST` bytes, or a device or pipe, which may have no end.
        OSError: no such file.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise BadInput(f"{path}: not a file")
    if found.st_size > LARGEST:
        raise BadInput(f"{path}: {found.st_size} bytes; valid: up to {LARGEST}")
    return path
