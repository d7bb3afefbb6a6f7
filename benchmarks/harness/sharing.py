"""Several workers on one device (`--workers auto`): how many, by what the first is seen to take."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean

import torch

from benchmarks.harness.bench import Bench, Setup
from benchmarks.harness.cells import Task
from benchmarks.harness.engines import Result, ran_out
from benchmarks.harness.workers import Pool, Worker, lost

#: Share of a device's memory that is kept free, for cells that take more than the first one did.
SPARE = 0.2


@dataclass(frozen=True)
class Taken:
    """What one worker takes of a device."""

    need: int
    """Bytes."""
    free: int
    """Bytes that are free beside that worker."""
    busy: float | None
    """Share of the device's time that the worker uses; None: not known."""

    def workers(self, most: int) -> int:
        """How many fit in all, `most` at most.

        A device whose time is not known to be free is not shared: workers that wait for each other
        do no more together, and all times in their records are longer.
        """
        if self.busy is None:
            return 1
        by_memory = 1 + int((1 - SPARE) * self.free / max(1, self.need))
        by_time = int(1 / max(self.busy, 1e-3))
        return max(1, min(by_memory, by_time, most))


class Gauge(ABC):
    """What can be read of a device."""

    cores: int = 1
    """Of the processor, that one worker on the device keeps at work."""

    @abstractmethod
    def free(self) -> int:
        """Bytes that nobody uses."""

    @abstractmethod
    def busy(self) -> float | None:
        """Share of its time that is used now; None: not known."""


class _Cuda(Gauge):
    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free(self) -> int:
        return torch.cuda.mem_get_info(self._device)[0]

    def busy(self) -> float | None:
        try:
            return torch.cuda.utilization(self._device) / 100
        except (ModuleNotFoundError, RuntimeError):  # Needs the package nvidia-ml-py.
            return None


class _Cores(Gauge):
    """The processor, of which a worker uses as many cores as it has threads."""

    def __init__(self, threads: int) -> None:
        self.cores, self._share = threads, threads / cores()

    def free(self) -> int:
        try:
            lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
        except (OSError, StopIteration):
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2

    def busy(self) -> float | None:
        return self._share


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gauge(device: str, threads: int) -> Gauge:
    """That of a device, of whose workers each computes on so many threads."""
    place = "cuda" if device == "auto" and torch.cuda.is_available() else device
    return _Cuda(torch.device(place)) if place.startswith("cuda") else _Cores(threads)


@dataclass
class _Place:
    """A device, and what has been seen of it."""

    gauge: Gauge
    before: int
    """Bytes that were free when it had no worker."""
    seen: list[float | None] = field(default_factory=list)
    """Of its time, again and again while its first worker was at work."""
    workers: int = 0
    """Decided; 0: not yet."""


class SharingPool(Pool):
    """One worker for each device, and more once the first has run a search there."""

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        devices: Sequence[str] = (),
        deadline: float,
        read: Callable[[str, int], Gauge] = gauge,
    ) -> None:
        """Workers on these devices, none: on the suite's; `read` reads one, as `gauge` does."""
        super().__init__(0, say, deadline=deadline)
        self._devices, self._read = tuple(dict.fromkeys(devices)), read
        self._found: dict[str, _Place] = {}
        self._searched = False

    def run(
        self, setup: Setup, tasks: Sequence[Task], bench: Bench | None = None
    ) -> Iterator[tuple[Task, Result]]:
        """As `Pool`; searches first, which take the most."""
        # How many fit is another question for each model.
        self.__exit__()
        devices = self._devices or (setup.device,)
        gauges = {name: self._read(name, setup.threads) for name in devices}
        self._found = {name: _Place(own, own.free()) for name, own in gauges.items()}
        self._places = deque(devices)
        self._split = setup.device_map is not None
        ordered = sorted(tasks, key=lambda task: not task.attack.searches)
        self._searched = not any(task.attack.searches for task in ordered)
        for task, result in super().run(setup, ordered, bench):
            if isinstance(result, list):
                # Of the run, as with a fixed number; the first cell had the device for itself.
                count = max(1, sum(place.workers for place in self._found.values()))
                result = [
                    outcome._replace(record=replace(outcome.record, concurrency=count))
                    for outcome in result
                ]
            yield task, result

    def _heard(self) -> Iterator[tuple[Worker, Result | None]]:
        for place in self._found.values():
            if not place.workers:
                place.seen.append(place.gauge.busy())
        yield from super()._heard()

    def _settled(self, worker: Worker, task: Task, result: Result) -> Result | None:
        if not isinstance(result, list) or worker.device is None:
            return result
        place = self._found[worker.device]
        beside = sum(other.device == worker.device for other in self._workers) - 1
        if beside and ran_out(result):
            self._say(f"out of memory during {lost(task)}: a worker less on {worker.device}")
            self._end(worker)
            return None
        searched = self._searched or task.attack.searches
        if not place.workers and searched and all(o.record.status == "ok" for o in result):
            self._decide(worker.device, place, max(o.record.peak_memory_bytes for o in result))
        return super()._settled(worker, task, result)

    def _decide(self, device: str, place: _Place, peak: int) -> None:
        """Makes room for as many workers as fit, and says so."""
        free = place.gauge.free()
        # Before the model is loaded nothing is at work.
        known = [share for share in (*place.seen, place.gauge.busy()) if share]
        # What a process takes beside its tensors shows in what is free no more.
        taken = Taken(max(peak, place.before - free), free, mean(known) if known else None)
        most = 1 if self._split else max(1, cores() // place.gauge.cores // len(self._found))
        place.workers = taken.workers(most)
        self._places += [device] * (place.workers - 1)
        time = "how much of the device's time cannot be read (pip install nvidia-ml-py)"
        if taken.busy is not None:
            time = f"{taken.busy:.0%} of the device's time"
        self._say(
            f"{device}: a worker takes {taken.need / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; "
            f"{time}; cores for {most}: {place.workers} worker{'s' * (place.workers > 1)}"
        )
