"""Local worker processes: they run tasks and hand outcomes back; only their parent writes."""

from __future__ import annotations

import dataclasses
import multiprocessing as mp
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from benchmarks.harness.bench import Bench, Setup
from benchmarks.harness.cells import Task
from benchmarks.harness.engines import DEADLINE, TRIES, Engine, Result, Server, ran_out
from benchmarks.harness.failures import Failure
from benchmarks.harness.signals import Terminated, terminate
from benchmarks.harness.timing import Stopwatch

#: Seconds that a worker gets to end: an idle one, or one that puts its checkpoint down.
PATIENCE = 5.0

#: Seconds between two signs of life.
BEAT = 1.0


@dataclass
class Worker:
    """A process, and what it is at."""

    process: SpawnProcess
    pipe: Connection
    device: str | None
    task: Task | None = None
    alive: Stopwatch = field(default_factory=Stopwatch)
    """Since the last sign of life."""


class Pool(Engine):
    """Up to `size` worker processes, started as tasks come in; a context manager."""

    def __init__(
        self,
        size: int,
        say: Callable[[str], None],
        *,
        devices: Sequence[str] = (),
        deadline: float = DEADLINE,
    ) -> None:
        """Workers on these devices in turn; one that is silent for `deadline` seconds is ended."""
        self._places = deque(devices[at % len(devices)] if devices else None for at in range(size))
        self._say = say
        self._deadline = deadline
        self._workers: list[Worker] = []

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            # Idle ones end by themselves and tidy up; what is busy now was interrupted.
            if worker.task is None:
                _quietly(worker.pipe.send, None)
            else:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(PATIENCE)
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()
        self._workers.clear()

    def run(
        self, setup: Setup, tasks: Sequence[Task], bench: Bench | None = None
    ) -> Iterator[tuple[Task, Result]]:
        """Each task and what became of it, as they finish."""
        waiting = deque(tasks)
        tries: Counter[str] = Counter()
        while waiting or any(worker.task for worker in self._workers):
            for worker in self._idle(len(waiting)):
                worker.task, worker.alive = waiting.popleft(), Stopwatch()
                tries[worker.task.cells[0].key] += 1
                # A worker that has died shows below, when nothing comes back from it.
                device = worker.device or setup.device
                _quietly(worker.pipe.send, (dataclasses.replace(setup, device=device), worker.task))
            for worker, result in self._heard():
                task, worker.task = worker.task, None
                assert task is not None
                if result is None:
                    again = tries[task.cells[0].key] < TRIES
                    result = self._bury(worker, task, again=again)
                    if again:
                        waiting.append(task)
                        continue
                settled = self._settled(worker, task, result)
                if settled is None:
                    waiting.append(task)
                    continue
                yield task, settled

    def _settled(self, worker: Worker, task: Task, result: Result) -> Result | None:
        """What becomes of the task in the end; None: it is run again."""
        if ran_out(result):
            self._end(worker)
            self._places.append(worker.device)
        return result

    def _heard(self) -> Iterator[tuple[Worker, Result | None]]:
        """Busy workers that are done, with their result, or that are dead or hang, with None."""
        busy = {worker.pipe: worker for worker in self._workers if worker.task}
        longest = max(worker.alive.elapsed for worker in busy.values())
        ready = wait(list(busy), timeout=max(0.0, self._deadline - longest))
        for pipe, worker in busy.items():
            if pipe not in ready:
                if worker.alive.elapsed >= self._deadline:
                    yield worker, None
                continue
            try:
                result = pipe.recv()
            except (EOFError, OSError):
                yield worker, None
                continue
            worker.alive = Stopwatch()
            if result is not None:
                yield worker, result

    def _idle(self, wanted: int) -> list[Worker]:
        idle = [worker for worker in self._workers if worker.task is None]
        while len(idle) < wanted and self._places:
            self._workers.append(_start(self._places.popleft()))
            idle.append(self._workers[-1])
        return idle[:wanted]

    def _bury(self, worker: Worker, task: Task, *, again: bool) -> Failure:
        """Removes a worker that is dead or hangs, and says so."""
        reason = f"the worker process gave no sign of life for {self._deadline:g} s"
        if worker.alive.elapsed < self._deadline:
            worker.process.join()
            reason = f"the worker process ended with exit code {worker.process.exitcode}"
        self._end(worker)
        self._places.append(worker.device)
        self._say(f"{reason} during {lost(task)}; {outlook(again=again)}")
        return Failure("error", reason)

    def _end(self, worker: Worker) -> None:
        """Ends a worker that is at nothing that would have to be kept."""
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)


def lost(task: Task) -> str:
    """What was being run, for the user."""
    cells = ", ".join(cell.behavior.id for cell in task.cells[:3])
    return f"{task.attack.name} on {cells}{' ...' if len(task.cells) > 3 else ''}"


def outlook(*, again: bool) -> str:
    """What becomes of a task whose worker has died."""
    return "it is retried once" if again else "given up"


def _start(device: str | None) -> Worker:
    # Spawned, not forked: torch's threads and CUDA do not survive a fork.
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    # Only the worker holds its end now, so its death reads as the end of the stream.
    theirs.close()
    return Worker(process, ours, device)


def _serve(pipe: Connection) -> None:
    """The life of a worker: a task in, signs of life and then its outcomes out."""
    # Ctrl-C reaches the whole group; the parent decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminate)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    server = Server()
    try:
        while (order := pipe.recv()) is not None:
            setup, task = order
            pipe.send(server.run(setup, task, _beating(pipe)))
    except (EOFError, Terminated):
        return


def _beating(pipe: Connection) -> Callable[[int, float | None], None]:
    """Tells the parent of steps, though not of each."""
    since = Stopwatch()

    def on_step(steps: int, loss: float | None) -> None:
        nonlocal since
        if since.elapsed >= BEAT:
            since = Stopwatch()
            pipe.send(None)

    return on_step


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
