"""Being told to stop: Ctrl-C, and SIGTERM, which schedulers send before they kill."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AT_ONCE = (
    b"reroute: ended at once; running the same command again resumes from the last checkpoint\n"
)


class Terminated(KeyboardInterrupt):
    """SIGTERM."""


def terminate(number: int, frame: FrameType | None) -> None:
    """A handler that raises `Terminated`."""
    raise Terminated


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside the block SIGTERM is an interrupt as Ctrl-C is, and the second of them ends it all.

    After a first signal the handlers stay: the process is on its way out, and a second signal that
    comes late would otherwise interrupt the last words. Elsewhere than in the main thread, which
    alone may have handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, second)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def second(number: int, frame: FrameType | None) -> None:
        os.write(2, _AT_ONCE)
        os._exit(128 + number)

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each in before:
        signal.signal(each, first)
    try:
        yield
    finally:
        for each, handler in before.items():
            if signal.getsignal(each) is first:
                signal.signal(each, handler)
