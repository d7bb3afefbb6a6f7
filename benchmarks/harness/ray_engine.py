"""Cells on a Ray cluster: actors that hold a model each, and one driver that writes.

Scheduling, placement and logs are Ray's. All machines see the results folder under the same
path: artefacts and checkpoints go through it, so a cell of a node that was lost goes on elsewhere
from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from attacks.core.errors import BadInput
from benchmarks.common.lines import one_line
from benchmarks.harness.bench import Bench, Setup
from benchmarks.harness.cells import Task
from benchmarks.harness.engines import DEADLINE, TRIES, Engine, Result, Server, ran_out
from benchmarks.harness.failures import Failure
from benchmarks.harness.timing import Stopwatch
from benchmarks.harness.workers import lost, outlook

try:
    # Ray's own reports of use go nowhere.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
except ImportError as error:
    raise BadInput("--engine ray needs Ray: pip install 'reroute-bench[ray]'") from error

#: Bytes that a worker takes beside the weights of its model.
BASE = 2**29

#: Seconds between two looks at whether workers are alive, at most.
LOOK = 10.0


#: `ray start --head` asks for one as soon as ~/.ray holds one; who connects has to be told so.
_TOKEN = "set it to token, and RAY_AUTH_TOKEN where ~/.ray/auth_token is not the cluster's"


@dataclass
class _Busy:
    """An actor, what it is at, and when it was last known to do anything."""

    actor: Any
    task: Task
    asked: Any
    """Its answer to the question for how long it has been silent, when that comes."""
    heard: Stopwatch | None = None
    """Since its last answer; None: it waits for a place in the cluster, maybe for a new node."""
    silent: float = 0.0
    """Seconds without a step, when it answered."""

    def quiet(self) -> float:
        """Seconds for which it has done nothing, as far as is known."""
        if ray.wait([self.asked], timeout=0)[0]:
            try:
                self.silent, self.heard = ray.get(self.asked), Stopwatch()
                self.asked = self.actor.silent.remote()
            except ray.exceptions.RayActorError:  # Its task ends the same way, and is seen to.
                return 0.0
        return 0.0 if self.heard is None else max(self.silent, self.heard.elapsed)


class RayEngine(Engine):
    """Up to `workers` actors, each with one task at a time."""

    def __init__(
        self,
        workers: int,
        address: str | None,
        gpus: float | None,
        say: Callable[[str], None],
        *,
        deadline: float = DEADLINE,
    ) -> None:
        """Connects to the cluster, or starts one on this machine.

        Actors that are silent for `deadline` seconds are ended.

        Raises:
            BadInput: no cluster at that address.
        """
        self._workers, self._gpus = workers, gpus
        self._say, self._deadline = say, deadline
        try:
            if address is None:
                # Ray shares cores out, and would let workers wait that the user has asked for.
                cores = max(os.cpu_count() or 1, workers)
                ray.init(address="local", num_cpus=cores, include_dashboard=False)
            else:
                _answers(address)
                ray.init(address=address)
        except Exception as error:  # Ray raises plain ones too.
            where = f" at '{address}'" if address else ""
            reason = one_line(str(error))[:200]
            if "AuthenticationError" in f"{error!r} {error.__cause__!r}":
                mode = os.environ.get("RAY_AUTH_MODE", "disabled")
                reason = f"it wants a token, and RAY_AUTH_MODE={mode}; {_TOKEN}"
            raise BadInput(f"no Ray cluster{where}: {reason}") from error

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def run(
        self, setup: Setup, tasks: Sequence[Task], bench: Bench | None = None
    ) -> Iterator[tuple[Task, Result]]:
        """Each task and what became of it, as they finish.

        Raises:
            BadInput: a worker does not see the results folder.
        """
        if Path(setup.source).is_dir():
            setup = dataclasses.replace(setup, source=str(Path(setup.source).resolve()))
        waiting, given = deque(tasks), ray.put(setup)
        actors: Any = _Actor
        actors = actors.options(**self._options(setup))
        idle = [actors.remote() for _ in tasks[: self._workers]]
        busy: dict[Any, _Busy] = {}
        deaths = Counter[int]()
        with _token(setup.artefacts.parent) as token:
            while waiting or busy:
                while waiting and idle:
                    actor, task = idle.pop(), waiting.popleft()
                    running = actor.run.remote(given, task, str(token))
                    busy[running] = _Busy(actor, task, actor.silent.remote())
                while idle:
                    # Makes room for those that have waited for it, with a task each.
                    ray.kill(idle.pop())
                done, reason = self._next(busy)
                actor, task = busy[done].actor, busy.pop(done).task
                result: Result = Failure("error", reason)
                try:
                    result = result if reason else self._result(done)
                except ray.exceptions.RayActorError as error:
                    # Its process, or the node under it. One that Ray cannot reach for the moment
                    # would fail every task that it is given.
                    reason = f"the worker died: {one_line(str(error))}"[:300]
                    result = Failure("error", reason)
                if not reason:
                    if ran_out(result):
                        ray.kill(actor)
                        actor = actors.remote()
                    idle.append(actor)
                    yield task, result
                    continue
                ray.kill(actor)
                idle.append(actors.remote())
                deaths[id(task)] += 1
                again = deaths[id(task)] < TRIES
                self._say(f"{reason} during {lost(task)}; {outlook(again=again)}")
                if again:
                    waiting.appendleft(task)
                else:
                    yield task, result
        for actor in idle:
            ray.kill(actor)

    def _next(self, busy: Mapping[Any, _Busy]) -> tuple[Any, str]:
        """What has come to an end, or what hangs and why it is taken to."""
        while True:
            done, _ = ray.wait(list(busy), timeout=min(LOOK, self._deadline / 4))
            if done:
                return done[0], ""
            for running, at in busy.items():
                if at.quiet() >= self._deadline:
                    return running, f"the worker gave no sign of life for {self._deadline:g} s"

    def _result(self, done: Any) -> Result:
        try:
            result: Result = ray.get(done)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, BadInput):
                raise cause from error
            return Failure("error", one_line(str(cause))[:300])
        return result

    def _options(self, setup: Setup) -> dict[str, Any]:
        """What one actor asks of the cluster."""
        gpus = self._gpus
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
        return {
            # Ray has a worker compute on as many threads, so all machines round alike.
            "num_cpus": setup.threads,
            "num_gpus": gpus,
            "memory": BASE + (0 if gpus else setup.weights),
        }


def _answers(address: str) -> None:
    """Fails at once where nobody listens: Ray tries for minutes, and then ends the process.

    Raises:
        OSError: no connection to `HOST:PORT`; other forms of address are Ray's to find.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _token(folder: Path) -> Iterator[Path]:
    """A file by which workers know the folder."""
    path = folder / f".ray-{uuid4().hex}"
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


# Two calls at a time: a task, and the question whether it goes on.
@ray.remote(max_concurrency=2)
class _Actor:
    """A `Server` somewhere in the cluster."""

    def __init__(self) -> None:
        self._server = Server()
        self._step: Stopwatch | None = None

    def silent(self) -> float:
        """Seconds since the last step, or since the task was begun; 0 without a task."""
        return self._step.elapsed if self._step else 0.0

    def run(self, setup: Setup, task: Task, token: str) -> Result:
        """See `Server.run`."""
        if not Path(token).is_file():
            raise BadInput(
                f"Ray worker on {os.uname().nodename} does not see '{Path(token).parent}': all "
                "machines of the cluster must have the results folder under the same path"
            )
        self._stepped()
        try:
            return self._server.run(setup, task, self._stepped)
        finally:
            self._step = None

    def _stepped(self, *_: object) -> None:
        self._step = Stopwatch()
