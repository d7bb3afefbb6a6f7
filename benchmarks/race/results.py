"""What a race comes to: medians, spreads and ratios, as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

from benchmarks.race.racer import Run

_NAMES = {
    "seconds_per_step": "Seconds a step",
    "processor_seconds_per_step": "Processor seconds a step",
    "candidates_per_second": "Candidates a second",
    "setup_seconds": "Seconds before the first step",
    "peak_mib": "Peak memory, MiB",
    "loss_after_equal_steps": "Loss after equal steps",
    "loss_after_equal_seconds": "Loss after equal seconds",
    "success_after_equal_steps": "Success after equal steps",
    "success_after_equal_seconds": "Success after equal seconds",
}


@dataclass(frozen=True)
class Pair:
    """The same task run by both."""

    ours: Run
    theirs: Run
    judged: dict[str, tuple[bool, bool]] | None = None
    """For "steps" and "seconds" whether the suffix of (ours, theirs) succeeded; None: unjudged."""

    @property
    def seconds(self) -> float:
        """When the faster one was done: up to then both had equal time."""
        return min(self.ours.total, self.theirs.total)

    def loss(self, run: Run) -> float:
        """The lowest loss of `run` after equal seconds, or what it started from."""
        steps = run.steps_within(self.seconds)
        return run.losses[steps - 1] if steps else run.start_loss

    def string(self, run: Run) -> str | None:
        """Its suffix then; None before the end of the first step."""
        steps = run.steps_within(self.seconds)
        return run.strings[steps - 1] if steps else None


@dataclass(frozen=True)
class Measure:
    """One figure of both sides over the rounds."""

    name: str
    ours: list[float]
    theirs: list[float]
    times_better: list[float] | None = None
    """For each round, how many times better ours is; above 1 we win."""
    flops_ratio: float | None = None
    """What the ratio would be if both computed equally fast: theirs / ours."""


def _ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float] | None:
    if any(value <= 0 for value in denominators):
        return None
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def measures(pairs: Sequence[Pair]) -> list[Measure]:
    """All figures, one value a round."""

    def sides(figure: Callable[[Run], float]) -> tuple[list[float], list[float]]:
        return [figure(pair.ours) for pair in pairs], [figure(pair.theirs) for pair in pairs]

    flops = sides(lambda run: median(run.flops))
    each = sides(lambda run: sum(run.flops) / sum(run.candidates))
    step = sides(lambda run: median(run.seconds))
    rate = sides(lambda run: sum(run.candidates) / sum(run.seconds))
    setup = sides(lambda run: run.setup)
    by_step = median(flops[1]) / median(flops[0])
    by_candidate = median(each[1]) / median(each[0])
    found = [
        Measure("seconds_per_step", *step, _ratios(step[1], step[0]), by_step),
        Measure("candidates_per_second", *rate, _ratios(*rate), by_candidate),
        Measure("setup_seconds", *setup, _ratios(setup[1], setup[0])),
    ]
    runs = [run for pair in pairs for run in (pair.ours, pair.theirs)]
    if all(run.processor is not None for run in runs):
        used = sides(lambda run: (run.processor or 0.0) / len(run.seconds))
        found.insert(
            1, Measure("processor_seconds_per_step", *used, _ratios(used[1], used[0]), by_step)
        )
    if all(run.peak is not None for run in runs):
        memory = sides(lambda run: (run.peak or 0) / 2**20)
        found.append(Measure("peak_mib", *memory, _ratios(memory[1], memory[0])))
    found.append(Measure("loss_after_equal_steps", *sides(lambda run: run.losses[-1])))
    found.append(
        Measure(
            "loss_after_equal_seconds",
            [pair.loss(pair.ours) for pair in pairs],
            [pair.loss(pair.theirs) for pair in pairs],
        )
    )
    judged = [pair.judged for pair in pairs if pair.judged is not None]
    for kind in ("steps", "seconds") if judged else ():
        found.append(
            Measure(
                f"success_after_equal_{kind}",
                [float(verdicts[kind][0]) for verdicts in judged],
                [float(verdicts[kind][1]) for verdicts in judged],
            )
        )
    return found


def spread(values: Sequence[float]) -> str:
    """Median and quartiles."""
    if len(values) < 2:
        return f"{values[0]:.3g}"
    low, _, high = quantiles(values, n=4, method="inclusive")
    return f"{median(values):.3g} [{low:.3g}, {high:.3g}]"


def table(found: Sequence[Measure]) -> str:
    """The Markdown table."""
    lines = [
        "| | ours | nanoGCG | times better | by FLOPs alone |",
        "| :-- | --: | --: | --: | --: |",
    ]
    for measure in found:
        if measure.name.startswith("success"):
            cells = [f"{mean(side):.2f} of {len(side)}" for side in (measure.ours, measure.theirs)]
        else:
            cells = [spread(measure.ours), spread(measure.theirs)]
        better, alone = measure.times_better, measure.flops_ratio
        cells.append(spread(better) if better else "-")
        cells.append("-" if alone is None else f"{alone:.3g}")
        lines.append(f"| {_NAMES[measure.name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(folder: Path, shape: str, facts: dict[str, Any], pairs: Sequence[Pair]) -> str:
    """Write `SHAPE.json` and `SHAPE.md` into `folder`.

    Args:
        folder: made if it is not there.
        shape: what was raced.
        facts: machine, versions, date and numbers of the search.
        pairs: one for each round.

    Returns:
        The Markdown.
    """
    found = measures(pairs)
    rounds = [
        {"ours": asdict(pair.ours), "theirs": asdict(pair.theirs), "judged": pair.judged}
        for pair in pairs
    ]
    content = {
        "shape": shape,
        "facts": facts,
        "measures": [vars(measure) for measure in found],
        "rounds": rounds,
    }
    heading = f"# Race against nanoGCG: {shape}\n\n"
    told = "".join(f"- {name}: {value}\n" for name, value in facts.items())
    notes = (
        "\nMedians over the rounds with quartiles; a success column gives the share of rounds. "
        "*Times better* compares the two within each round; *by FLOPs alone* is what it would be "
        "if both computed equally fast.\n"
    )
    text = f"{heading}{told}\n{table(found)}\n{notes}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{shape}.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    (folder / f"{shape}.md").write_text(text, "utf-8")
    return text
