"""Local worker processes: they run tasks and hand outcomes back; only their parent writes."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Self

from benchmarks.bench import Bench, Outcome, Setup
from benchmarks.cells import Task
from benchmarks.engine import execute
from benchmarks.failures import Failure, failure_of
from benchmarks.threads import fixed_threads, threads_for

#: Outcomes of a task, or why there are none.
Result = list[Outcome] | Failure

#: Seconds that an idle worker gets to end.
PATIENCE = 5.0

#: How often a task may take its worker down with it before it is given up.
TRIES = 2


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    task: Task | None = None


class Pool:
    """Up to `size` worker processes, started as tasks come in; a context manager."""

    def __init__(self, size: int, say: Callable[[str], None]) -> None:
        self._size = size
        self._say = say
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            # Idle ones end by themselves and tidy up; what is busy now was interrupted.
            if worker.task is None:
                _quietly(worker.pipe.send, None)
                worker.process.join(PATIENCE)
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()
        self._workers.clear()

    def run(self, setup: Setup, tasks: Sequence[Task]) -> Iterator[tuple[Task, Result]]:
        """Each task and what became of it, as they finish."""
        waiting = deque(tasks)
        tries: Counter[str] = Counter()
        while waiting or any(worker.task for worker in self._workers):
            for worker in self._idle(len(waiting)):
                worker.task = waiting.popleft()
                tries[worker.task.cells[0].key] += 1
                # A worker that has died shows below, when nothing comes back from it.
                _quietly(worker.pipe.send, (setup, worker.task))
            busy = {worker.pipe: worker for worker in self._workers if worker.task}
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                task, worker.task = worker.task, None
                assert task is not None
                try:
                    result = worker.pipe.recv()
                except (EOFError, OSError):
                    again = tries[task.cells[0].key] < TRIES
                    result = self._bury(worker, task, again=again)
                    if again:
                        waiting.append(task)
                        continue
                yield task, result

    def _idle(self, wanted: int) -> list[_Worker]:
        idle = [worker for worker in self._workers if worker.task is None]
        while len(idle) < wanted and len(self._workers) < self._size:
            self._workers.append(_start())
            idle.append(self._workers[-1])
        return idle[:wanted]

    def _bury(self, worker: _Worker, task: Task, *, again: bool) -> Failure:
        """Removes a dead worker and says so."""
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)
        cells = ", ".join(cell.behavior.id for cell in task.cells[:3])
        more = " ..." if len(task.cells) > 3 else ""
        reason = f"the worker process ended with exit code {worker.process.exitcode}"
        end = "it is tried once more" if again else "given up"
        self._say(f"{reason} during {task.attack.name} on {cells}{more}; {end}")
        return Failure("error", reason)


def _start() -> _Worker:
    # Spawned, not forked: torch's threads and CUDA do not survive a fork.
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    # Only the worker holds its end now, so its death reads as the end of the stream.
    theirs.close()
    return _Worker(process, ours)


def _serve(pipe: Connection) -> None:
    """The life of a worker: a task in, its outcomes out."""
    # Ctrl-C reaches the whole group; the parent decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    bench: Bench | None = None
    while True:
        try:
            order = pipe.recv()
        except EOFError:
            return
        if order is None:
            return
        setup, task = order
        result: Result
        try:
            if bench is None or bench.setup != setup:
                bench = None
                bench = Bench(setup)
            with fixed_threads(threads_for(bench.model)):
                result = execute(bench, task, lambda steps, loss: None)
        except Exception as error:
            result = failure_of(error)
        pipe.send(result)


def _end_with_parent() -> None:
    """Ends this process with its parent, however that ends: SIGKILL runs no handler."""
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _quietly(send: Callable[[object], None], message: object) -> None:
    try:
        send(message)
    except OSError:
        return
