"""Where cells are run: in this process, in others of this machine, or on a Ray cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Self

from benchmarks.common.threads import fixed_threads
from benchmarks.harness.bench import Bench, OnStep, Outcome, Setup
from benchmarks.harness.cells import Task
from benchmarks.harness.engine import execute, executed
from benchmarks.harness.failures import CONTAINED, Failure, failure_of

#: Seconds without a sign of life after which a worker is taken to hang.
DEADLINE = 3600.0

#: How often a task may take its worker down with it before it is given up.
TRIES = 2

#: Outcomes of a task, or why there are none.
Result = list[Outcome] | Failure


def ran_out(result: Result) -> bool:
    """Whether memory ran out in the task: what holds it, maybe a leak, goes with the process."""
    return isinstance(result, list) and any(
        outcome.record.status == "out_of_memory" for outcome in result
    )


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
        """In order; outcomes of one task one by one."""
        assert bench is not None
        for task in tasks:
            with self._steps(task) as on_step:
                for outcome in executed(bench, task, on_step):
                    yield task, [outcome]


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
