"""Lines for the user beside progress bars."""

from __future__ import annotations

import sys

from tqdm import tqdm

from benchmarks.common.lines import one_line


def say(line: str) -> None:
    """A line on stderr, above the progress bars."""
    tqdm.write(one_line(line), file=sys.stderr)
