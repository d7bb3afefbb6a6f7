"""What a search that was interrupted goes on from, and whether it does so bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from attacks.attack import State, Step
from benchmarks.harness.bench import Bench, Tally
from benchmarks.harness.cells import Cell
from benchmarks.harness.checkpoints import Checkpoint
from benchmarks.harness.failures import failure_of
from benchmarks.storage.records import Seconds


@dataclass(frozen=True)
class _Standing:
    """The JSON part of a search's checkpoint."""

    tally: Tally
    """What the cell had done when the step after the state had been taken, that step's work
    included and the step itself not."""
    seconds: Seconds
    onward: str
    """Fingerprint of that step, without its loss."""
    loss: float | None
    """Of that step."""


_STANDING = TypeAdapter(_Standing)

#: How far losses of one filling are apart in passes of different shapes, by the model's dtype.
_ROUNDING, _COARSE = {"float64": 1e-9, "float32": 1e-3}, 0.1


class Saved(NamedTuple):
    """A checkpoint of a search, as it comes back."""

    state: State
    tally: Tally
    seconds: Seconds
    onward: str
    loss: float | None


class Resumable:
    """The checkpoint of one search.

    It is that of a step behind: what goes on from a `Step.state` has things to set up again (a
    prefix, an answer of the model's own) that the first process did long ago. The work of the next
    step, which that process has measured, is kept with the state; so neither work nor time is
    counted twice, whatever setting up takes. That step also shows whether the search goes on as it
    would have gone.
    """

    def __init__(self, bench: Bench, cell: Cell, *, exactly: bool = True) -> None:
        """`exactly`: whether a search that goes on has to do so bit for bit.

        Beside others, who need not be where they were, it does so up to rounding.
        """
        checkpoints = bench.setup.checkpoints
        self._bench = bench
        self._apart = 0.0 if exactly else _ROUNDING.get(bench.model.dtype, _COARSE)
        self._keeper = checkpoints.keeper(cell.key) if checkpoints else None
        self._latest: tuple[State, Tally, Seconds, Step] | None = None

    def load(self) -> Saved | None:
        """What there is to go on from."""
        found = self._keeper.load(self._bench.model.device) if self._keeper else None
        if found is None:
            return None
        try:
            standing = _STANDING.validate_python(found.data)
        except ValidationError:
            return None
        return Saved(found.state, standing.tally, standing.seconds, standing.onward, standing.loss)

    def again(self, steps: Iterator[Step], saved: Saved) -> Step | None:
        """The step after the checkpoint, taken again; None where it is not the same.

        Such a search starts over: its attack's state is not all that it needs, or this machine
        rounds in another way.
        """
        try:
            step = next(steps, None)
        except Exception as error:
            if failure_of(error).status == "out_of_memory":
                raise
            return None
        same = step is not None and _fingerprint(step) == saved.onward
        return step if step is not None and same and self._near(step.loss, saved.loss) else None

    def _near(self, one: float | None, other: float | None) -> bool:
        if one is None or other is None or one == other:
            return one == other
        return abs(one - other) <= self._apart * max(1.0, abs(one))

    def at(self, state: State, tally: Tally, seconds: Seconds, onward: Step) -> None:
        """Where the search stands; kept now and then.

        Args:
            state: of the step before.
            tally: with the work of the step `onward`, and without the step.
            seconds: as `tally`.
            onward: the step that has just been taken.
        """
        if self._keeper is None or not state:
            return
        peak = max(tally.peak_memory, self._bench.model.peak_memory())
        tally = dataclasses.replace(tally, losses=list(tally.losses), peak_memory=peak)
        self._latest = (state, tally, seconds, onward)
        if self._keeper.due:
            self.save()

    def save(self) -> None:
        """Keeps where the search stands, whenever the last time was."""
        if self._keeper is None or self._latest is None:
            return
        state, tally, seconds, onward = self._latest
        data: Mapping[str, Any] = dataclasses.asdict(
            _Standing(tally, seconds, _fingerprint(onward), onward.loss)
        )
        self._keeper.save(Checkpoint(state, data))


def _fingerprint(step: Step) -> str:
    """Of what a record says about a step, its loss apart."""
    turns = [[[turn.role, turn.content] for turn in prompt] for prompt in step.prompts]
    text = repr((turns, step.target, step.source))
    return hashlib.sha256(text.encode()).hexdigest()
