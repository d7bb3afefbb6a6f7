"""One side of a race: a process that is given tasks and watched with the referee's clock.

Tasks and what happens are JSON objects, one a line. A racer says `ready`; asked for `logits` it
answers with them; asked to `race` it says `start` (with the loss of the common initial suffix and
the lengths of the prompt), `step` after each step (lowest loss so far, its string, how many
candidates were evaluated), and `end`.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attacks.core.errors import BadInput
from benchmarks.harness.timing import Stopwatch
from benchmarks.race.flops import Lengths


@dataclass
class Run:
    """One search as the referee saw it."""

    setup: float = 0.0
    """Seconds from the task to the first loss."""
    lengths: Lengths = field(default_factory=lambda: Lengths(0, 0, 0, 0))
    start_loss: float = 0.0
    seconds: list[float] = field(default_factory=list)
    """Of each step."""
    losses: list[float] = field(default_factory=list)
    """The lowest so far, after each step."""
    strings: list[str] = field(default_factory=list)
    """The suffix with that loss."""
    candidates: list[int] = field(default_factory=list)
    """Evaluated in each step."""
    flops: list[int] = field(default_factory=list)
    """Of each step."""
    processor: float | None = None
    """Seconds of processor time for all steps, which a busy machine hardly stretches; None where
    the system does not tell."""
    peak: int | None = None
    """Bytes above what was held once loaded; None where the system does not tell."""

    @property
    def total(self) -> float:
        """Seconds from the task to the last step."""
        return self.setup + sum(self.seconds)

    def steps_within(self, seconds: float) -> int:
        """How many steps were over so many seconds after the task."""
        elapsed, steps = self.setup, 0
        for spent in self.seconds:
            elapsed += spent
            if elapsed > seconds:
                break
            steps += 1
        return steps


@dataclass(frozen=True)
class Finish:
    """One race to success."""

    seconds: float
    """Until the first verified success, or the end; what the referee took to verify is left out."""
    processor: float | None
    """Seconds of processor time in that time, which a busy machine hardly stretches."""
    steps: int
    succeeded: bool
    content: str
    """The last message verified."""
    answer: str


#: What a message is answered, and whether that is a success.
Check = Callable[[str], tuple[str, bool]]


class Racer:
    """A process that races; a context manager that ends it."""

    def __init__(self, command: Sequence[str], *, threads: int, apart: bool = False) -> None:
        """Start the process and wait until it has loaded its model.

        Args:
            command: what to run.
            threads: that the process computes with.
            apart: it belongs to another environment, and must not find our packages.

        Raises:
            BadInput: it ends without being ready, with the last line it wrote on why.
        """
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in __exit__)
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if apart:
            environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            list(command),
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self.versions: dict[str, str] = self._hear("ready")["versions"]
        except BadInput:
            self.__exit__()
            raise
        self._usage = _Usage(self._process.pid)

    def __enter__(self) -> Racer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _say(self, **content: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(content) + "\n")
        self._process.stdin.flush()

    def _hear(self, *events: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["no reason given"])[-1]
            raise BadInput(f"a racer ended: {last[:300]}")
        heard: dict[str, Any] = json.loads(line)
        assert heard["event"] in events, heard
        return heard

    def logits(self, rows: Sequence[Sequence[int]], stride: int) -> list[list[float]]:
        """Every `stride`-th logit after the last token of each of `rows` (equally long)."""
        self._say(do="logits", rows=rows, stride=stride)
        logits: list[list[float]] = self._hear("logits")["logits"]
        return logits

    def race(self, task: dict[str, Any]) -> Run:
        """Run one search to its end, and time it."""
        self._usage.restart()
        watch = Stopwatch()
        self._say(do="race", **task)
        heard = self._hear("start")
        run = Run(setup=watch.elapsed, start_loss=heard["loss"])
        run.lengths = Lengths(heard["before"], task["slots"], heard["after"], heard["target"])
        at = run.setup
        before = self._usage.processor()
        while (heard := self._hear("step", "end"))["event"] == "step":
            now = watch.elapsed
            run.seconds.append(now - at)
            at = now
            run.losses.append(heard["loss"])
            run.strings.append(heard["string"])
            run.candidates.append(heard["candidates"])
            if "flops" in heard:
                run.flops.append(heard["flops"])
        after = self._usage.processor()
        run.processor = None if before is None or after is None else after - before
        run.peak = self._usage.peak() if heard["peak"] is None else heard["peak"]
        return run

    def prepare(self, **task: Any) -> float:
        """Have it fit what it needs for this model, once; the seconds that took."""
        watch = Stopwatch()
        self._say(do="prepare", **task)
        self._hear("prepared")
        return watch.elapsed

    def race_to_success(self, task: dict[str, Any], check: Check) -> Finish:
        """One search until `check` finds the message of a step to succeed, or until its end."""
        before, watch = self._usage.processor(), Stopwatch()
        self._say(do="race", **task)
        spent, since, steps = 0.0, 0.0, 0
        content, answer, good = "", "", False
        while not good and (heard := self._hear("step", "end"))["event"] == "step":
            spent += watch.elapsed - since
            steps += 1
            if heard["content"] != content:
                content = heard["content"]
                answer, good = check(content)
            used = self._usage.processor()
            since = watch.elapsed
            self._say(do="stop" if good else "on")
        if good:
            self._hear("end")
        else:
            spent += watch.elapsed - since
            used = self._usage.processor()
        processor = None if before is None or used is None else used - before
        return Finish(spent, processor, steps, good, content, answer)


class _Usage:
    """What a process has used, as Linux tells it in proc(5); elsewhere it is unknown."""

    def __init__(self, pid: int) -> None:
        """Memory is counted above what the process holds now."""
        self._folder = Path(f"/proc/{pid}")
        self._known = self._folder.is_dir()
        self._held = self._status("VmRSS") if self._known else 0

    def _status(self, name: str) -> int:
        lines = (self._folder / "status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

    def restart(self) -> None:
        """Measure the peak of memory again from here."""
        if self._known:
            (self._folder / "clear_refs").write_text("5")

    def peak(self) -> int | None:
        """The most bytes held since the last restart, above what was held at the beginning."""
        return max(0, self._status("VmHWM") - self._held) if self._known else None

    def processor(self) -> float | None:
        """Seconds of processor time so far, all threads together."""
        if not self._known:
            return None
        # The name in the second field, in brackets, may hold spaces.
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
