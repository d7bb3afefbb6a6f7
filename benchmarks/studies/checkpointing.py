"""What checkpoints cost a search: ``python -m benchmarks.studies.checkpointing --out DIR``.

Runs the same search with and without checkpoints at the default interval, in turn, in one process,
and compares the processor's seconds, which other processes on the machine change little. The ratio
of two runs varies by more than checkpoints cost, so what writing them takes is measured by itself
as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attacks import parse_spec
from attacks.core.refusals.openers import GENERAL_OPENERS
from attacks.core.template import DATE
from benchmarks.common.files import write_whole
from benchmarks.common.progress import say
from benchmarks.common.threads import fixed_threads
from benchmarks.harness.bench import Bench, Setup
from benchmarks.harness.cells import Cell, Settings, Task
from benchmarks.harness.checkpoints import Checkpoint, Checkpoints, Keeper
from benchmarks.harness.engine import execute
from benchmarks.harness.timing import Stopwatch
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.inputs.models import resolve

MODEL, ATTACK, SET = "pocket-llama", "gcg", "pocket-test"


@dataclass(frozen=True)
class Watched(Checkpoints):
    """Checkpoints whose writing is measured."""

    processor: list[float] = field(default_factory=list)
    """Seconds of each."""

    def keeper(self, key: str) -> Keeper:
        """A keeper that notes what it takes."""
        return _Watching(self, key)


class _Watching(Keeper):
    def __init__(self, checkpoints: Watched, key: str) -> None:
        super().__init__(checkpoints, key)
        self._taken = checkpoints.processor

    def save(self, checkpoint: Checkpoint) -> None:
        watch = Stopwatch()
        super().save(checkpoint)
        self._taken.append(watch.processor)


def measure(rounds: int, steps: int, every: float | None = None) -> dict[str, Any]:
    """The cost of checkpoints in `rounds` pairs of searches of `steps` steps, alternating.

    Args:
        rounds: pairs of searches; the order within a pair alternates too.
        steps: of each search.
        every: seconds between two checkpoints; None: the default.
    """
    attack = replace(parse_spec(ATTACK), **{"steps": steps})
    behavior = load_behaviors(SET)[0]
    found: dict[str, list[float]] = {"with": [], "without": []}
    wall = 0.0
    with tempfile.TemporaryDirectory() as name, fixed_threads(1):
        folder = Path(name)
        plain = Setup(
            source=resolve(MODEL),
            name=MODEL,
            device="cpu",
            dtype="auto",
            system=None,
            date=DATE,
            settings=Settings(8, 1, "never", "phrases", ("phrases",), None),
            openers=GENERAL_OPENERS,
            artefacts=folder,
            concurrency=1,
        )
        checkpoints = Watched(folder) if every is None else Watched(folder, every)
        model = plain.load()
        benches = {
            "without": Bench(plain, model),
            "with": Bench(replace(plain, checkpoints=checkpoints), model),
        }
        # The first search of a process takes longer than those after it.
        warm = replace(attack, **{"steps": 2})
        execute(benches["without"], Task((Cell("warm", warm, behavior, 0, ""),)), _unseen)
        for number in range(rounds):
            for which in ("with", "without") if number % 2 else ("without", "with"):
                cell = Cell(f"{which}-{number}", attack, behavior, 0, "")
                watch = Stopwatch()
                (outcome,) = execute(benches[which], Task((cell,)), _unseen)
                assert outcome.record.status == "ok", outcome.record.error
                found[which].append(watch.processor)
                wall += watch.elapsed if which == "with" else 0.0
            pair = found["with"][-1] / found["without"][-1]
            say(f"round {number + 1}: {pair:.4f}, {len(checkpoints.processor)} checkpoints so far")
    written = checkpoints.processor
    ratios = [ours / theirs for ours, theirs in zip(*found.values(), strict=True)]
    return {
        "model": MODEL,
        "attack": ATTACK,
        "steps": steps,
        "seconds between checkpoints": checkpoints.every,
        "processor seconds": found,
        "ratio": statistics.median(ratios),
        "least and largest ratio": [min(ratios), max(ratios)],
        "checkpoints": len(written),
        "processor seconds of one": statistics.mean(written) if written else None,
        "share of the processor's time": sum(written) / sum(found["with"]),
        "wall-clock seconds with checkpoints": wall,
    }


def _unseen(steps: int, loss: float | None) -> None:
    """Nobody looks at the steps."""


def main() -> None:
    """Measures and writes `checkpointing.json`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="of each search")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    found = measure(args.rounds, args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    write_whole(args.out / "checkpointing.json", (json.dumps(found, indent=1) + "\n").encode())
    say(f"written: {args.out / 'checkpointing.json'}")


if __name__ == "__main__":
    main()
