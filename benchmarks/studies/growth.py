"""How a search step's cost grows: ``python -m benchmarks.studies.growth --out DIR``.

Runs GCG on Llamas with random weights, and changes one number at a time: slots, candidates, tokens
before the slots, layers, width, vocabulary. Each is fitted as cost = a * value^b; the exponent b of
FLOPs says what the method costs, that of seconds what this machine makes of it. Settings take
turns, so that a machine that is busy for a while is so for all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import linregress

from attacks.core.artefact import EMPTY
from attacks.core.behavior import Behavior
from attacks.core.model import Model
from attacks.registry import load
from benchmarks.boards.tables import table
from benchmarks.common.progress import say
from benchmarks.harness.timing import Stopwatch
from benchmarks.race.shapes import Size
from benchmarks.race.weights import make_random_llama

_HEAD = 32
_TOPK = 64


@dataclass(frozen=True)
class Setting:
    """Numbers of a search and of the model that it runs on."""

    slots: int = 10
    candidates: int = 64
    before: int = 32
    """Tokens of the request, which stand before the slots."""
    layers: int = 4
    width: int = 128
    """Of the residual stream."""
    vocabulary: int = 4096

    def model(self, folder: Path) -> Model:
        """A Llama of that shape with random weights, made in `folder` unless it is there."""
        heads = self.width // _HEAD
        size = Size(self.layers, self.width, 3 * self.width, heads, heads, _HEAD, self.vocabulary)
        place = folder / f"{self.layers}-{self.width}-{self.vocabulary}"
        if not place.exists():
            make_random_llama(place, size, dtype=torch.float32, seed=0)
        return Model.load(str(place), device="cpu", dtype="float32")

    def step(self, folder: Path, steps: int) -> tuple[float, float]:
        """Median seconds and FLOPs of one of `steps` steps; the first is not counted."""
        model = self.model(folder)
        # Random words are many tokens or few, so the request grows until it is long enough.
        tokenizer = model.chat.tokenizer
        request = "a"
        while len(tokenizer(request, add_special_tokens=False)["input_ids"]) < self.before:
            request += " a"
        attack = load("gcg", steps=steps + 1, width=self.candidates, topk=_TOPK, slots=self.slots)
        run = attack.run(
            model,
            Behavior("growth", request, target="Sure, here is"),
            artefact=EMPTY,
            rng=torch.Generator().manual_seed(0),
        )
        next(run)
        seconds, before = [], model.meter.snapshot().flops
        watch = Stopwatch()
        for _ in run:
            seconds.append(watch.elapsed)
            watch = Stopwatch()
        done = model.meter.snapshot().flops - before
        return statistics.median(seconds), done / len(seconds)


#: What is changed, and to what.
SWEEPS: dict[str, tuple[int, ...]] = {
    "slots": (5, 10, 20, 40),
    "candidates": (32, 64, 128, 256),
    "before": (16, 32, 128, 384),
    "layers": (2, 4, 8, 16),
    "width": (64, 128, 256, 512),
    "vocabulary": (2048, 8192, 32768, 131072),
}


def exponent(values: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """The exponent b of cost = a * value^b by least squares of logarithms, and its error."""
    fit = linregress([math.log(value) for value in values], [math.log(cost) for cost in costs])
    return float(fit.slope), float(fit.stderr)


def measure(rounds: int, steps: int) -> list[dict[str, Any]]:
    """Seconds (medians over rounds) and FLOPs of a step at each setting."""
    plans = [
        (name, value, replace(Setting(), **{name: value}))
        for name, values in SWEEPS.items()
        for value in values
    ]
    seconds: list[list[float]] = [[] for _ in plans]
    flops = [0.0 for _ in plans]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for at, (name, value, setting) in enumerate(plans):
                took, flops[at] = setting.step(Path(folder), steps)
                seconds[at].append(took)
                say(f"round {number + 1}, {name} {value}: {1e3 * took:.1f} ms")
    return [
        {"number": name, "value": value, "seconds": statistics.median(times), "flops": work}
        for (name, value, _), times, work in zip(plans, seconds, flops, strict=True)
    ]


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The tables, in Markdown."""
    lines = []
    for name in SWEEPS:
        chosen = [row for row in rows if row["number"] == name]
        values = [row["value"] for row in chosen]
        cells = [
            name,
            ", ".join(map(str, values)),
            ", ".join(f"{1e3 * row['seconds']:.0f}" for row in chosen),
        ]
        for key in ("seconds", "flops"):
            slope, error = exponent(values, [row[key] for row in chosen])
            cells.append(f"{slope:.2f} ± {error:.2f}")
        lines.append(cells)
    headings = ("Number", "Values", "Milliseconds a step", "Exponent, seconds", "Exponent, FLOPs")
    return table(headings, lines, left=3) + "\n"


def main() -> None:
    """Measure, and write `growth.md` and `growth.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = measure(options.rounds, options.steps)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "growth.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    (options.out / "growth.md").write_text(page(rows), "utf-8")


if __name__ == "__main__":
    main()
