"""Several searches in turns: each runs until it wants something of the model, and all are answered.

Each is a thread, since a search is ordinary code that calls the model deep inside; but only one of
them runs at a time, and this thread runs when none does. So nothing races, and what happens does
not depend on how threads are scheduled. Of what is wanted, the kind that most searches want is
answered first, in one joint pass (`attacks.core.model.joint`): the others catch up with it or it
with them, so searches that are out of step come into step again.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch

from attacks.core.model import Wish
from benchmarks.harness.bench import release_memory
from benchmarks.harness.failures import failure_of
from benchmarks.harness.timing import OwnTime

T = TypeVar("T")

#: Seconds between two looks at a search that is to stop.
_LOOK = 0.05


class Stopped(KeyboardInterrupt):
    """What a search is told by `Seat.ask` when the run is interrupted."""


class _Raised:
    """An answer that is an exception."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Seat(Generic[T]):
    """One search: its thread, its time, and what it waits for."""

    def __init__(self, number: int, job: Callable[[Seat[T]], T], back: threading.Lock) -> None:
        self.number = number
        self.time = OwnTime()
        self.wish: Wish | None = None
        self.answer: Any = None
        self.result: T | None = None
        self.error: BaseException | None = None
        self.over = False
        self._stopped = False
        self._back, self._go = back, threading.Lock()
        self._go.acquire()
        self._process, self._threads = os.getpid(), torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, args=(job,), daemon=True)
        self._thread.start()

    def turn(self) -> None:
        """Let it run until it wants something or is over."""
        self._go.release()
        self._back.acquire()

    def ask(self, wish: Wish) -> Any:
        """In its own thread: the answer to a wish.

        Raises:
            Stopped: the run is interrupted.
        """
        self.wish = wish
        self._yield()
        self._wait()
        answer, self.answer, self.wish = self.answer, None, None
        if isinstance(answer, _Raised):
            raise answer.error
        return answer

    def stop(self) -> None:
        """Have it unwind, wherever it is; returns when it has."""
        self._stopped = True
        while self._thread.is_alive():
            if self._go.locked():
                self._go.release()
            self._thread.join(_LOOK)

    def _run(self, job: Callable[[Seat[T]], T]) -> None:
        try:
            self._wait()
            torch.set_num_threads(self._threads)
            self.result = job(self)
        except BaseException as error:
            self.error = error
        if os.getpid() != self._process:
            # The search has forked, and its child has nobody to come back to.
            os._exit(1)
        self.over = True
        self._yield()

    def _wait(self) -> None:
        self._go.acquire()
        if self._stopped:
            raise Stopped
        self.time.start()

    def _yield(self) -> None:
        self.time.stop()
        if os.getpid() != self._process:
            os._exit(1)
        if not self._stopped:
            self._back.release()


class Rounds:
    """Runs searches at `seats` at a time; the next one begins when one is over."""

    def __init__(self, seats: int, synchronise: Callable[[], None]) -> None:
        """`synchronise` waits for the device, so that what a pass takes can be shared out."""
        self._size = seats
        self._synchronise = synchronise
        self._most: dict[type[Any], int] = {}
        """Size of what is answered in one go, by kind of wish, where memory ran out beyond it."""

    def run(self, jobs: Sequence[Callable[[Seat[T]], T]]) -> Iterator[tuple[int, T]]:
        """The index and the result of each job, as they end.

        A job that raises ends all of them: what may go wrong inside a search it has to contain.
        """
        waiting, back = deque(enumerate(jobs)), threading.Lock()
        back.acquire()
        seats: list[Seat[T]] = []
        try:
            while waiting or seats:
                while waiting and len(seats) < self._size:
                    seats.append(Seat(*waiting.popleft(), back))
                for seat in [
                    seat for seat in seats if seat.wish is None or seat.answer is not None
                ]:
                    seat.turn()
                    if seat.over:
                        seats.remove(seat)
                        if seat.error is not None:
                            raise seat.error
                        yield seat.number, seat.result  # type: ignore[misc]
                if seats and not (waiting and len(seats) < self._size):
                    self._answer(_commonest(seats))
        finally:
            for seat in seats:
                seat.stop()

    def _answer(self, seats: Sequence[Seat[T]]) -> None:
        """Answer what these seats want, in as many passes as memory asks for."""
        for chunk in self._chunks(seats):
            failure = self._try(chunk)
            if failure is None:
                continue
            if failure == "out_of_memory":
                # Outside the except block, which holds on to the memory of the attempt.
                release_memory()
                self._most[type(chunk[0].wish)] = max(1, sum(map(_size, chunk)) // 2)
                self._answer(chunk)
            else:
                for seat in chunk:
                    self._try([seat])

    def _try(self, seats: Sequence[Seat[T]]) -> str | None:
        """Answer these in one pass; the status where that fails and several are to blame."""
        wishes: list[Any] = [seat.wish for seat in seats]
        time = OwnTime()
        self._synchronise()
        time.start()
        answers, failure = [], None
        try:
            answers = type(wishes[0]).together(wishes)
        except Exception as error:
            if len(seats) == 1:
                answers = [_Raised(error)]
            else:
                failure = failure_of(error).status
        self._synchronise()
        time.stop()
        whole = sum(wish.size for wish in wishes)
        for seat in seats:
            seat.time.add(time.now() * _size(seat) / whole)
        for seat, answer in zip(seats, answers, strict=False):
            seat.answer = answer
        return failure

    def _chunks(self, seats: Sequence[Seat[T]]) -> Iterator[list[Seat[T]]]:
        """Parts of no more than fits, each of one seat at least."""
        chunk: list[Seat[T]] = []
        for seat in seats:
            whole = sum(map(_size, chunk)) + _size(seat)
            if chunk and whole > self._most.get(type(seat.wish), whole):
                yield chunk
                chunk = []
            chunk.append(seat)
        yield chunk


def _size(seat: Seat[T]) -> int:
    assert seat.wish is not None
    return seat.wish.size


def _commonest(seats: Sequence[Seat[T]]) -> list[Seat[T]]:
    """The seats whose wishes join, of the kind that most want; of equals, the first seat's."""
    kinds: list[list[Seat[T]]] = []
    for seat in seats:
        assert seat.wish is not None
        for kind in kinds:
            if kind[0].wish is not None and kind[0].wish.joins(seat.wish):
                kind.append(seat)
                break
        else:
            kinds.append([seat])
    return max(kinds, key=len)
