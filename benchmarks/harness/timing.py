"""The only reader of a clock: seconds, apart by phase.

Seconds are those of a clock that nobody sets (`time.perf_counter`): the time of day jumps, by hours
where a machine learns it late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Literal

from tqdm import tqdm

from benchmarks.storage.records import Seconds

Phase = Literal["prepare", "search", "verify", "generate", "judge"]


class Clock:
    """Adds up the seconds spent in each phase of one cell.

    Accelerators run behind the program, so the device is waited for at both edges of a phase;
    otherwise the work of one phase would be charged to the next.
    """

    def __init__(
        self,
        synchronise: Callable[[], None],
        spent: Seconds | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Go on from what has been `spent`; `now` tells the time."""
        self._synchronise = synchronise
        self._now = now
        self._spent: dict[Phase, float] = asdict(spent or Seconds())  # type: ignore[assignment]

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Charges the enclosed block to `name`, also when it raises; phases do not nest."""
        self._synchronise()
        start = self._now()
        try:
            yield
        finally:
            self._synchronise()
            self._spent[name] += self._now() - start

    def charge(self, name: Phase, seconds: float) -> None:
        """Adds seconds measured elsewhere: a share of a batch, or an artefact's original cost."""
        self._spent[name] += seconds

    def spent(self, *names: Phase) -> float:
        """Seconds in these phases together."""
        return sum(self._spent[name] for name in names)

    @property
    def seconds(self) -> Seconds:
        """All phases, as a record holds them."""
        return Seconds(**self._spent)


class OwnTime:
    """Seconds of one of several that take turns: those of its turns, and shares of what is joint.

    While others have their turns it stands still.
    """

    def __init__(self) -> None:
        self._sum = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Its turn begins."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Its turn ends."""
        self._sum, self._since = self.now(), None

    def add(self, seconds: float) -> None:
        """A share of what was done for several."""
        self._sum += seconds

    def now(self) -> float:
        """Seconds so far."""
        return self._sum + (0.0 if self._since is None else time.perf_counter() - self._since)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._processor = time.process_time()

    @property
    def elapsed(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._start

    @property
    def processor(self) -> float:
        """Seconds of processor time of this process so far, all threads together.

        A busy machine hardly stretches them; threads that spin while they wait count in full.
        """
        return time.process_time() - self._processor


class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A progress bar, whose speed and remaining time do not follow jumps of the time of day."""

    def __init__(self, *, left: Callable[[], float | None] | None = None, **options: Any) -> None:
        """See tqdm; `left` gives the remaining seconds, where they do not follow from the speed."""
        self._left = left
        if left is not None:
            shown = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{left}{postfix}]"
            options = {"bar_format": shown, **options}
        # A number for `miniters` keeps tqdm's monitor, which reads the time of day, from this bar.
        super().__init__(**{"miniters": 1, **options})
        self._time = time.perf_counter
        self.start_t = self.last_print_t = self._time()

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the bar may show."""
        seconds = self._left() if self._left else None
        left = "?" if seconds is None else self.format_interval(seconds)
        return {**super().format_dict, "left": left}


def today() -> str:
    """The date, in the form of ISO 8601."""
    return time.strftime("%Y-%m-%d")


def no_device() -> None:
    """The `synchronise` of work that runs on no accelerator."""
