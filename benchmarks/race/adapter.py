"""What a peer needs to race to success. Runs in the peer's own environment, without this suite.

A peer is a script that the referee starts as `PYTHON script.py FOLDER DEVICE DTYPE THREADS`, with
the folder of a model in Hugging Face's format. It loads the model and serves:

    referee = Referee(versions={"my-attack": "1.0"})
    for task in referee.tasks():
        try:
            for suffix, loss in my_attack(task["request"], task["target"], task["seed"]):
                referee.step(task["request"] + suffix, loss)
        except Stopped:
            pass
        referee.end()

A task has `request`, `target` (what the answer should begin with), `seed`, `steps`, `width`
(candidates a step), `topk`, `slots`, `batch`, `initial` (the first suffix as a string, for those
who need one), and whatever `extras` the referee was given for this model. `step` is
called after each step with the whole message to send, best so far; the referee stops its clock,
asks the model under attack for a greedy answer, and raises `Stopped` where that is a success.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any


class Stopped(Exception):
    """The referee has seen enough."""


class Referee:
    """The other end of the line: JSON objects, one a line, on stdin and stdout."""

    def __init__(self, versions: dict[str, str]) -> None:
        """Say that the model is loaded; what the peer prints goes to stderr from now on."""
        self._lines = os.fdopen(os.dup(1), "w", buffering=1)
        sys.stdout = sys.stderr
        self._tell(event="ready", versions=versions)

    def _tell(self, **content: Any) -> None:
        self._lines.write(json.dumps(content) + "\n")

    def tasks(self) -> Iterator[dict[str, Any]]:
        """The tasks, until the referee ends."""
        for line in sys.stdin:
            yield json.loads(line)

    def prepared(self) -> None:
        """Answer to a task with `do` = "prepare"."""
        self._tell(event="prepared")

    def step(self, content: str, loss: float) -> None:
        """Report the message that is best after a step.

        Raises:
            Stopped: its answer was a success.
        """
        self._tell(event="step", content=content, loss=loss)
        if json.loads(sys.stdin.readline())["do"] == "stop":
            raise Stopped

    def end(self) -> None:
        """Report that the search is over, by itself or stopped."""
        self._tell(event="end")
