"""Where cells are run: in this process, in others of this machine, or on a Ray cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Self

from attacks.core.errors import BadInput
from benchmarks.bench import Bench, OnStep, Outcome, Setup
from benchmarks.cells import Task
from benchmarks.engine import execute
from benchmarks.failures import CONTAINED, Failure, failure_of
from benchmarks.threads import fixed_threads

NAMES = ("local", "ray")

#: Seconds without a sign of life after which a worker is taken to hang.
DEADLINE = 3600.0

#: How often a task may take its worker down with it before it is given up.
TRIES = 2

#: Outcomes of a task, or why there are none.
Result = list[Outcome] | Failure


class Engine(ABC):
    """Runs tasks and hands back what becomes of them; only its caller writes records."""

    in_process: bool = False
    """Whether tasks are run on the model that the caller has loaded."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends what was started."""
        return

    @abstractmethod
    def run(
        self, setup: Setup, tasks: Sequence[Task], bench: Bench | None
    ) -> Iterator[tuple[Task, Result]]:
        """Each task and what became of it, as they finish; `bench` where that is `in_process`."""


class InProcess(Engine):
    """One task after the other, here."""

    in_process = True

    def __init__(self, steps: Callable[[Task], AbstractContextManager[OnStep]]) -> None:
        """`steps` shows the steps of a search."""
        self._steps = steps

    def run(
        self, setup: Setup, tasks: Sequence[Task], bench: Bench | None
    ) -> Iterator[tuple[Task, Result]]:
        """In order."""
        assert bench is not None
        for task in tasks:
            with self._steps(task) as on_step:
                result = execute(bench, task, on_step)
            yield task, result


class Server:
    """What a worker does: the tasks of one model after the other, on a model that it loads."""

    def __init__(self) -> None:
        self._bench: Bench | None = None

    def run(self, setup: Setup, task: Task, on_step: OnStep = lambda steps, loss: None) -> Result:
        """What becomes of the task."""
        try:
            if self._bench is None or self._bench.setup != setup:
                self._bench = None  # Before the next is loaded.
                self._bench = Bench(setup)
            with fixed_threads(setup.threads):
                return execute(self._bench, task, on_step)
        except CONTAINED as error:
            return failure_of(error)


@dataclass(frozen=True)
class Machinery:
    """Which engine, and what it is made of."""

    engine: str = "local"
    workers: int = 1
    devices: tuple[str, ...] = ()
    """Of the workers, in turn; none: the suite's, for all of them."""
    deadline: float = DEADLINE
    address: str | None = None
    """Of a Ray cluster; None: one on this machine, for this run."""
    gpus: float | None = None
    """Of each Ray worker; None: one where the cluster has any."""

    def __post_init__(self) -> None:
        if self.engine not in NAMES:
            raise BadInput(f"engine '{self.engine}'; valid: {', '.join(NAMES)}")
        if self.workers < 1:
            raise BadInput(f"{self.workers} workers; valid: 1 or more")
        if not self.deadline > 0:
            raise BadInput(f"a deadline of {self.deadline} seconds; valid: more than 0")
        if self.gpus is not None and not 0 <= self.gpus < float("inf"):
            raise BadInput(f"{self.gpus} GPUs for each worker; valid: 0 or more")
        if self.engine == "ray" and self.devices:
            raise BadInput("--devices is for local workers; on a Ray cluster, Ray hands out GPUs")
        if self.engine != "ray" and (self.address or self.gpus is not None):
            raise BadInput("--address and --gpus are for --engine ray")

    @property
    def size(self) -> int:
        """Cells that are run at a time: one for each device at least."""
        return max(self.workers, len(self.devices))

    def start(
        self,
        say: Callable[[str], None],
        steps: Callable[[Task], AbstractContextManager[OnStep]],
    ) -> Engine:
        """The engine, a context manager.

        Args:
            say: tells the user a line.
            steps: shows the steps of a search that is run in this process.

        Raises:
            BadInput: Ray is not installed, or there is no cluster at that address.
        """
        if self.engine == "ray":
            from benchmarks.ray_engine import RayEngine

            return RayEngine(self, say)
        if self.size == 1 and not self.devices:
            return InProcess(steps)
        from benchmarks.workers import Pool

        return Pool(self.size, say, devices=self.devices, deadline=self.deadline)
