"""Which engine runs the cells, as a value made of options, and how it is started."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from attacks.core.errors import BadInput
from benchmarks.harness.bench import OnStep
from benchmarks.harness.cells import Task
from benchmarks.harness.engines import DEADLINE, Engine, InProcess

NAMES = ("local", "ray")


@dataclass(frozen=True)
class Machinery:
    """Which engine, and what it is made of."""

    engine: str = "local"
    workers: int | Literal["auto"] = 1
    """Cells at a time; "auto": as many as fit on the devices, by what the first is seen to take."""
    together: int | Literal["auto"] = 1
    """Searches whose passes are joined, in each worker; "auto": measured for each attack."""
    devices: tuple[str, ...] = ()
    """Of the workers, in turn; none: the suite's, for all of them."""
    deadline: float | None = None
    """Seconds without a step after which a worker is replaced; None: `DEADLINE`, and none for a
    single local worker, which is then this process."""
    address: str | None = None
    """Of a Ray cluster; None: one on this machine, for this run."""
    gpus: float | None = None
    """Of each Ray worker; None: one where the cluster has any."""

    def __post_init__(self) -> None:
        if self.engine not in NAMES:
            raise BadInput(f"engine '{self.engine}'; valid: {', '.join(NAMES)}")
        if self.workers != "auto" and self.workers < 1:
            raise BadInput(f"{self.workers} workers; valid: 1 or more, or auto")
        if self.workers == "auto" and self.engine == "ray":
            raise BadInput("--workers auto is for local workers; on a Ray cluster, name a number")
        if self.together != "auto" and self.together < 1:
            raise BadInput(f"{self.together} searches together; valid: 1 or more, or auto")
        if self.deadline is not None and not self.deadline > 0:
            raise BadInput(f"a deadline of {self.deadline} seconds; valid: more than 0")
        if self.gpus is not None and not 0 <= self.gpus < float("inf"):
            raise BadInput(f"{self.gpus} GPUs for each worker; valid: 0 or more")
        if self.engine == "ray" and self.devices:
            raise BadInput("--devices is for local workers; on a Ray cluster, Ray hands out GPUs")
        if self.engine != "ray" and (self.address or self.gpus is not None):
            raise BadInput("--address and --gpus are for --engine ray")

    @property
    def size(self) -> int:
        """Cells that are run at a time: one for each device at least; "auto" begins with that."""
        return max(1 if self.workers == "auto" else self.workers, len(self.devices))

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
        deadline = DEADLINE if self.deadline is None else self.deadline
        if self.workers == "auto":
            from benchmarks.harness.sharing import SharingPool

            return SharingPool(say, devices=self.devices, deadline=deadline)
        if self.engine == "ray":
            from benchmarks.harness.ray_engine import RayEngine

            return RayEngine(self.workers, self.address, self.gpus, say, deadline=deadline)
        if self.size == 1 and not self.devices and self.deadline is None:
            return InProcess(steps)
        from benchmarks.harness.workers import Pool

        return Pool(self.size, say, devices=self.devices, deadline=deadline)
