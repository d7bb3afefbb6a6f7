"""Summary of races to success: survival curves, and the ratio of medians with its interval."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.boards.success import BOOTSTRAP_SEED, CONFIDENCE, RESAMPLES
from benchmarks.race.racer import Finish

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """The same behaviour attacked by both."""

    behavior: str
    ours: Finish
    theirs: Finish


@dataclass(frozen=True)
class Ratio:
    """Their median time to a first success by ours; above 1 we are faster."""

    ours: float
    theirs: float
    """Infinite where half of the behaviours had no success."""
    times: float
    low: float
    high: float
    bound: bool
    """Whether the ratio is a lower bound: their searches without success count as if the success
    had come at their end."""


def ratio(pairs: Sequence[Pair], figure: Callable[[Finish], float]) -> Ratio:
    """Of medians, with a bootstrap over behaviours, whose pairs stay together.

    Our searches without success count as infinite. Theirs count with what they took, which makes
    the ratio a lower bound wherever they reach into their median.
    """
    ours = np.array([figure(p.ours) if p.ours.succeeded else math.inf for p in pairs])
    spent = np.array([figure(p.theirs) for p in pairs])
    theirs = np.array([figure(p.theirs) if p.theirs.succeeded else math.inf for p in pairs])
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = rng.integers(len(pairs), size=(RESAMPLES, len(pairs)))
    ratios = _medians(spent[drawn]) / _medians(ours[drawn])
    low, high = np.quantile(
        ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="inverted_cdf"
    )
    mine, his, least = (float(_medians(side[None])[0]) for side in (ours, theirs, spent))
    return Ratio(mine, his, least / mine, float(low), float(high), bool(np.isinf(theirs).any()))


def _medians(costs: Floats) -> Floats:
    """(R,) when half of each row's (R, N) behaviours were done."""
    half: Floats = np.sort(costs, axis=1)[:, math.ceil(costs.shape[1] / 2) - 1]
    return half


def figures(pairs: Sequence[Pair]) -> dict[str, Ratio]:
    """By wall clock, by processor time where the system tells it, and by steps."""
    kinds: dict[str, Callable[[Finish], float]] = {"seconds": lambda end: end.seconds}
    if all(end.processor is not None for p in pairs for end in (p.ours, p.theirs)):
        kinds["processor seconds"] = lambda end: max(end.processor or 0.0, 0.01)
    kinds["steps"] = lambda end: float(end.steps)
    return {name: ratio(pairs, figure) for name, figure in kinds.items()}


def table(pairs: Sequence[Pair]) -> str:
    """The Markdown table."""
    rates = [
        f"{sum(end.succeeded for end in side)} of {len(pairs)}"
        for side in ([p.ours for p in pairs], [p.theirs for p in pairs])
    ]
    lines = [
        "| | ours | theirs | times less |",
        "| :-- | --: | --: | --: |",
        f"| Verified success | {rates[0]} | {rates[1]} | |",
    ]
    for name, found in figures(pairs).items():
        sides = [f"{v:.3g}" if math.isfinite(v) else "never" for v in (found.ours, found.theirs)]
        sign = "≥ " if found.bound else ""
        times = f"{sign}{found.times:.3g} [{found.low:.3g}, {found.high:.3g}]"
        lines.append(f"| Median {name} to it | {sides[0]} | {sides[1]} | {times} |")
    return "\n".join(lines)


def draw(pairs: Sequence[Pair], title: str, theirs: str, path: Path) -> None:
    """Share of behaviours without a success yet, against seconds of search, as a PNG file."""
    figure = Figure(figsize=(6.0, 3.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    sides = (("ours", [p.ours for p in pairs], "-"), (theirs, [p.theirs for p in pairs], "--"))
    end = max(finish.seconds for _, side, _ in sides for finish in side)
    for name, side, style in sides:
        times = sorted(finish.seconds for finish in side if finish.succeeded)
        left = [1 - at / len(side) for at in range(len(times) + 1)]
        start = min([*times, end]) / 2
        axes.step([start, *times, end], [*left, left[-1]], style, where="post", label=name)
    axes.set_xscale("log")
    axes.set_ylim(-0.03, 1.03)
    axes.set(xlabel="seconds of search", ylabel="without a success yet", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Software": None})


def write(folder: Path, name: str, facts: dict[str, Any], pairs: Sequence[Pair]) -> str:
    """Write `NAME.json`, `NAME.md` and `NAME.png` into `folder`; returns the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "facts": facts,
        "figures": {kind: _finite(asdict(found)) for kind, found in figures(pairs).items()},
        "races": [asdict(pair) for pair in pairs],
    }
    told = "".join(f"- {key}: {value}\n" for key, value in facts.items())
    text = (
        f"# Race to success: {name}\n\n{told}\n{table(pairs)}\n\n![survival curves]({name}.png)\n\n"
        "Time of search until the first answer that the referee's judge called a success, its own "
        "time left out on both sides. Times less: ratio of the medians, with the 95 % bootstrap "
        "interval over behaviours; ≥ where searches of theirs ended without success and count as "
        "if it had come at their end.\n"
    )
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    (folder / f"{name}.md").write_text(text, "utf-8")
    draw(pairs, name, name.rpartition("-")[2], folder / f"{name}.png")
    return text


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity."""
    return {key: None if value == math.inf else value for key, value in values.items()}
