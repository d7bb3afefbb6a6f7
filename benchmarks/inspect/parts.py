"""The parts of an inspection: each is measured once, kept, and shown as progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from benchmarks.inspect.course import Course
from benchmarks.inspect.kept import Kept

T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """What was measured, and what is still to be."""

    kept: Kept
    course: Course

    def get(self, name: str, kind: Any, make: Callable[[], T]) -> T:
        """The part of this name, made where it has not been kept.

        Args:
            name: distinct; parts of one kind begin with the same word.
            kind: the type of what `make` gives, a dataclass, a plain type, or a list of either.
            make: measures it.

        Raises:
            BadInput: a damaged file of what was kept.
        """
        if name in self.kept:
            self.course.done(name, self.kept.seconds(name))
        else:
            self.kept.put(name, *self.course.run(name, make))
        # As it comes back from the file, so that a resumed inspection has the very same values.
        found: T = self.kept.get(name, kind)
        return found
