"""How many searches fill a device: measured here, projected for a card; ``--out DIR``.

Measured: steps a processor second of searches together, on shipped models.

Projected: no card was there to measure on. A step of one search has a part that all searches of a
joint step share (what it takes to issue the operations of each block, and to fetch the weights) and
a part of its own (the arithmetic or the traffic of its positions, whichever takes longer, and the
work of the host between passes). The first and the host's part are measured here, on one core;
FLOPs are counted by the suite's meter's rule; the card's numbers are its data sheet's, of which
half is taken to be reached. Such a figure says where to look and is no measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from torch import Generator

from attacks.core.behavior import Behavior
from attacks.core.model import Model
from attacks.core.prompt import suffixed
from attacks.core.search.candidates import swap, uniform_choices
from benchmarks.boards.tables import table
from benchmarks.common.progress import say
from benchmarks.common.threads import fixed_threads
from benchmarks.common.versions import hardware
from benchmarks.harness.occupancy import ENOUGH, Shape, fewest, paces
from benchmarks.harness.timing import Stopwatch, today
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.inputs.models import resolve
from benchmarks.race.shapes import SHAPES, Size
from benchmarks.race.weights import make_random_llama

#: What is projected for. Those of 135 M and 8 B are of SmolLM2 and Llama 3.
SIZES: dict[str, Size | None] = {
    "pocket": None,
    "135 M": Size(30, 576, 1536, 9, 3, 64, 49152),
    "1 B": SHAPES["1b"].size,
    "8 B": Size(32, 4096, 14336, 32, 8, 128, 128256),
}
CANDIDATES = (64, 128, 256, 512)
SLOTS = 20
_REQUESTS = 16
_BYTES = 2  # Of a number in bfloat16.


class Card(NamedTuple):
    """A graphics card's data sheet."""

    name: str
    flops: float
    """A second, dense, in bfloat16."""
    traffic: float
    """Bytes a second."""


CARD = Card("NVIDIA H200", 989e12, 4.8e12)
#: Share of the data sheet's that is taken to be reached.
REACHED = 0.5


class Positions(NamedTuple):
    """Of one sequence: in the cache, computed, and with logits."""

    past: float
    new: float
    head: float


class Host(NamedTuple):
    """Seconds of one core, measured."""

    block: float
    """To issue the operations of a block, forward."""
    back: float
    """The same with the backward pass."""
    candidate: float
    """Between two passes, for each candidate: drawn, and re-tokenised."""


def positions_of(model: Model, rows: Sequence[Behavior]) -> Positions:
    """Means over the prompts of these requests with a suffix."""
    found = []
    for row in rows:
        rng = Generator().manual_seed(0)
        prompt = model.prompt(suffixed(row, SLOTS), target=row.affirmative, rng=rng)
        start, target = int(prompt.slots.min()), len(prompt.target_ids)
        found.append((start, len(prompt.ids) + target - 1 - start, target))
    return Positions(*(mean(column) for column in zip(*found, strict=True)))


def host(rows: Sequence[Behavior], rounds: int = 15) -> Host:
    """Processor time of what no card does: medians, on models of two depths and little width."""
    taken: dict[tuple[int, bool], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for layers in (4, 24):
            place = Path(folder) / str(layers)
            make_random_llama(
                place, Size(layers, 32, 32, 1, 1, 32, 512), dtype=torch.float32, seed=0
            )
            model = Model.load(str(place), device="cpu", dtype="float32")
            ids = torch.arange(8)[None]
            for back in (False, True):
                seconds = []
                for _ in range(rounds):
                    embeds = model.embed(ids).detach().requires_grad_(back)
                    watch = Stopwatch()
                    with torch.set_grad_enabled(back):
                        logits = model.hf(inputs_embeds=embeds, use_cache=False).logits
                        if back:
                            torch.autograd.grad(logits.sum(), embeds)
                    seconds.append(watch.processor)
                taken[layers, back] = median(seconds)
    block, again = ((taken[24, which] - taken[4, which]) / 20 for which in (False, True))
    model = Model.load(resolve("pocket-llama"), device="cpu", dtype="float32")
    seconds = []
    for row in rows:
        rng = Generator().manual_seed(0)
        prompt = model.prompt(suffixed(row, SLOTS), target=row.affirmative, rng=rng)
        choices = uniform_choices(prompt.slot_ids, model.chat.allowed)
        watch = Stopwatch()
        drawn = swap(prompt.slot_ids, choices, width=CANDIDATES[-1], n_replace=1, rng=rng)
        model.chat.survives(prompt, drawn)
        seconds.append(watch.processor / CANDIDATES[-1])
    return Host(block, again, median(seconds))


def intensity(size: Size, at: Positions, candidates: int) -> tuple[float, float]:
    """FLOPs and bytes of one search's share of a step: a gradient, and losses of its candidates.

    Of the bytes those of the weights are left out, which a joint step fetches once. In a block each
    number of the stream and of the hidden layer is taken to be written and read a few times.
    """
    attention = 4 * size.heads * size.head_width * at.new * (at.past + at.new)
    linear = 2 * at.new * size.layers * size.weights + 2 * at.head * size.width * size.vocabulary
    row = linear + size.layers * attention
    back = linear + 2 * size.layers * attention
    keys = 2 * size.key_value_heads * size.head_width * (at.past + at.new)
    stream = at.new * (12 * size.width + 4 * size.hidden)
    moved = _BYTES * (size.layers * (stream + 2 * keys) + 6 * at.head * size.vocabulary)
    return candidates * row + row + back, (candidates + 3) * moved


class Projection(NamedTuple):
    """Of one size and number of candidates on the card: none of it is measured there."""

    alone: float
    """Share of its time in which the card computes, with one search."""
    most: float
    """Steps a second of many searches over those of one."""
    enough: int
    """Searches that make `ENOUGH` of that."""


def project(size: Size, at: Positions, candidates: int, costs: Host, card: Card) -> Projection:
    """Where the device computes, the host issues what comes next, and only then."""
    flops, moved = intensity(size, at, candidates)
    weights = _BYTES * (size.layers * size.weights + size.width * size.vocabulary)
    own = max(flops / card.flops, moved / card.traffic) / REACHED
    fetching = 3 * weights / card.traffic / REACHED
    issuing = size.layers * (costs.block + costs.back)
    between = candidates * costs.candidate

    def step(searches: int) -> float:
        return max(issuing, fetching + searches * own) + searches * between

    last = own + between
    enough = next(n for n in range(1, 100_000) if n / step(n) >= ENOUGH / last)
    return Projection(min(1.0, (fetching + own) / step(1)), step(1) / last, enough)


def page(facts: dict[str, Any], measured: dict[str, Any], projected: dict[str, Any]) -> str:
    """Both tables, in Markdown."""
    counts = sorted({int(n) for row in measured.values() for n in row})
    ours = [
        [
            name,
            *(f"{row[n]:.2f}" if n in row else "" for n in map(str, counts)),
            str(fewest({int(n): pace for n, pace in row.items()})),
        ]
        for name, row in measured.items()
    ]
    theirs = [
        [*key.split(", "), f"{100 * p['alone']:.0f}", f"{p['most']:.1f}", str(p["enough"])]
        for key, p in projected.items()
    ]
    told = "".join(f"- {key}: {value}\n" for key, value in facts.items())
    head = ("Model and candidates", *(f"{n} together" for n in counts), "Taken by `auto`")
    titles = (
        "Model",
        "Candidates",
        "% of time busy, alone",
        "Most gained",
        "Searches for nine tenths",
    )
    how = "".join((__doc__ or "").partition("Projected: n")[2:])
    return (
        f"# Searches together\n\n{told}\n## Measured on this processor\n\nSteps a processor "
        f"second of all searches.\n\n{table(head, ours, left=1)}\n\n"
        f"## Projected, not measured: {CARD.name}\n\n{table(titles, theirs, left=1)}\n\n"
        f"N{' '.join(how.split())}\n"
    )


def main(argv: list[str] | None = None) -> None:
    """Measure, project, and write `together.md` and `together.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add: Any = parser.add_argument
    add("--out", type=Path, default=Path("results/speed"))
    add("--model", nargs="+", default=("pocket-llama", "pocket-gemma2"))
    add("--widths", type=int, nargs="+", default=(16, 64))
    add("--most", type=int, default=8)
    options = parser.parse_args(argv)
    rows = [row for row in load_behaviors("pocket-test") if row.harmful][:_REQUESTS]
    measured, projected = {}, {}
    with fixed_threads(1):
        costs = host(rows)
        say(f"a block is issued in {1e6 * costs.block:.0f} µs, backward {1e6 * costs.back:.0f} µs")
        for name in options.model:
            model = Model.load(resolve(name), name=name, device="cpu", dtype="float32")
            at = positions_of(model, rows)
            for width in options.widths:
                found = paces(model, rows, Shape(width, SLOTS), options.most)
                measured[f"{name}, {width}"] = {str(n): pace for n, pace in found.items()}
                say(f"{name}, {width}: {found}")
    pocket = json.loads((Path(resolve("pocket-llama")) / "config.json").read_text("utf-8"))
    for name, size in SIZES.items():
        for candidates in CANDIDATES:
            one = project(size or Size.of(pocket), at, candidates, costs, CARD)
            projected[f"{name}, {candidates}"] = one._asdict()
    facts = {
        "date": today(),
        "machine": f"{hardware('cpu')}, {os.cpu_count()} cores, one thread, beside other work",
        "torch": torch.__version__,
        "positions": f"{at.past:.0f} cached, {at.new:.0f} computed, {at.head:.0f} with logits",
        "issuing a block": f"{1e6 * costs.block:.0f} µs, and {1e6 * costs.back:.0f} µs with the "
        "backward pass",
        "between passes": f"{1e6 * costs.candidate:.0f} µs a candidate",
    }
    options.out.mkdir(parents=True, exist_ok=True)
    content = {"facts": facts, "measured": measured, "projected": projected}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (options.out / "together.json").write_text(text + "\n", "utf-8")
    (options.out / "together.md").write_text(page(facts, measured, projected), "utf-8")


if __name__ == "__main__":
    main()
