"""How far an inspection is, and when it will be done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread
from typing import TypeVar

from benchmarks.common.progress import say
from benchmarks.harness.timing import Bar, Stopwatch

T = TypeVar("T")

#: Seconds from which a part has a line of its own when it is done, and a forecast is given at all.
_LONG, _WORTH_TELLING = 10.0, 60.0
#: Share of a guess that a part takes at least which is really run.
_THERE = 0.1


class Course:
    """The parts of an inspection; their seconds are guessed first and then learned.

    Parts of one kind (names that begin with the same word) are taken to last as long as those
    that are done; others as long as guessed, times how wrong the guesses have been so far.
    """

    def __init__(self, title: str, guesses: Mapping[str, float]) -> None:
        """Guesses are seconds by the part's name, in any order."""
        self._guesses = dict(guesses)
        self._left = dict(guesses)
        self._spent: dict[str, list[float]] = {}
        self._wrong = [0.0, 0.0]
        self._current: tuple[str, Stopwatch] | None = None
        options = {"unit": "part", "desc": title, "disable": None, "leave": False}
        self._bar = Bar(total=len(guesses), left=self.remaining, **options)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """With the bar moving, also during long parts."""
        done = Event()

        def move() -> None:
            while not done.wait(1.0):
                self._bar.refresh()

        thread = Thread(target=move, daemon=True)
        if not self._bar.disable:
            thread.start()
        if (left := self.remaining()) >= _WORTH_TELLING:
            say(f"inspect: {len(self._left)} parts, about {clock(left)} if nothing is there yet")
        try:
            yield
        finally:
            done.set()
            self._bar.close()

    def run(self, name: str, make: Callable[[], T]) -> tuple[T, float]:
        """What `make` gives, and its seconds."""
        watch = Stopwatch()
        self._current = (name, watch)
        self._bar.set_postfix_str(name)
        made = make()
        seconds = watch.elapsed
        self._current = None
        self.done(name, seconds)
        if seconds >= _LONG:
            left = self.remaining()
            say(f"inspect: {name} took {clock(seconds)}; about {clock(left)} left")
        return made, seconds

    def done(self, name: str, seconds: float | None = None) -> None:
        """A part that need not be run any more, and what it took, if that tells anything."""
        if name not in self._left:
            return
        guess = self._left.pop(name)
        if seconds is not None:
            self._spent.setdefault(_kind(name), []).append(seconds)
            # What takes next to no time was there already, which tells nothing of the guesses.
            if guess and seconds > _THERE * guess:
                self._wrong[0] += seconds
                self._wrong[1] += guess
        self._bar.update()

    @property
    def left(self) -> list[str]:
        """Names of the parts that are not done."""
        return list(self._left)

    def remaining(self) -> float:
        """Seconds until all is done."""
        left = sum(map(self._expected, self._left))
        if self._current is not None:
            name, watch = self._current
            left -= min(watch.elapsed, self._expected(name))
        return left

    def _expected(self, name: str) -> float:
        if seconds := self._spent.get(_kind(name)):
            return sum(seconds) / len(seconds)
        spent, guessed = self._wrong
        return self._guesses.get(name, 0.0) * (spent / guessed if guessed else 1.0)


def clock(seconds: float) -> str:
    """As h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def _kind(name: str) -> str:
    return name.partition(" ")[0]
