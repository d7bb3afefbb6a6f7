"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

#: Ends the names of files that are still being written; a kill may leave one behind.
UNFINISHED = ".tmp"


def write_whole(path: Path, data: bytes) -> None:
    """Gives `path` this content: whoever reads it, or a kill, finds the old or the new one.

    Raises:
        OSError: it cannot be written; nothing is left of the attempt.
    """
    # A name of its own, for two processes may write the same file.
    temporary = path.with_name(f".{uuid4().hex}{UNFINISHED}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
