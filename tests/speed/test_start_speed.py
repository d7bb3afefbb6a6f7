"""How long `import attacks` and the listing commands take, from start to end: ``make speed``.

What is timed is a whole process, the start of Python included. `processor_seconds` beside it is
the median of what it computed, which a busy machine hardly stretches. That neither imports torch is
tested in tests/test_listings.py.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from typing import Any

import pytest

from conftest import ROOT

COMMANDS = {
    "python": ["-c", ""],
    "import attacks": ["-c", "import attacks"],
    **{
        name: ["-m", "benchmarks.cli", name]
        for name in ("attacks", "models", "behaviors", "judges", "defenses", "suites")
    },
}


@pytest.mark.parametrize("name", COMMANDS)
def test_start(benchmark: Any, name: str) -> None:
    used = []

    def run() -> int:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, *COMMANDS[name]]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        return done.returncode

    assert benchmark.pedantic(run, rounds=1 if benchmark.disabled else 7) == 0
    benchmark.extra_info["processor_seconds"] = round(statistics.median(used), 3)
