"""`python -m benchmarks.race.plain`: the search core beside a plain loop, step by step.

Both run in this process on the same weights, from the same filling and with equal generators, so
they evaluate the same candidates; the plain loop on transformers' model as it is loaded. They take
turns after each step, and who begins changes from behaviour to behaviour, so that whatever else
the machine does hits both alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from attacks.attack import SuffixAttack
from attacks.core.artefact import EMPTY
from attacks.core.errors import BadInput
from attacks.core.model import Model
from attacks.core.model.loading import load_parts
from attacks.core.objectives import TargetCrossEntropy
from attacks.core.prompt import Prompt
from attacks.core.search import Evaluator
from attacks.core.search.coordinate import Survives
from attacks.registry import load
from benchmarks.boards.tables import table
from benchmarks.common.threads import fixed_threads
from benchmarks.common.versions import hardware
from benchmarks.harness.timing import Stopwatch, today
from benchmarks.inputs.models import resolve
from benchmarks.race.plain_loop import plain_loop
from benchmarks.race.results import spread
from benchmarks.race.shapes import SHAPES, Shape
from benchmarks.race.tasks import behaviors_of, task_of

_SHAPE = SHAPES["pocket"]


@dataclass
class Side:
    """What one of the two took for the steps of one behaviour, the first of them apart."""

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    fillings: list[list[int]] = field(default_factory=list)

    def step(self, run: Iterator[tuple[Tensor, float]]) -> None:
        """Take a step and note it."""
        watch = Stopwatch()
        filling, loss = next(run)
        self.seconds.append(watch.elapsed)
        self.processor.append(watch.processor)
        self.losses.append(loss)
        self.fillings.append(filling.tolist())


@dataclass(frozen=True)
class Round:
    """One behaviour, searched by both."""

    threads: int
    ours: Side
    plain: Side

    @property
    def alike(self) -> int:
        """Steps until the two first go on from different fillings, or all."""
        pairs = zip(self.ours.fillings, self.plain.fillings, strict=True)
        return next((at for at, (a, b) in enumerate(pairs) if a != b), len(self.ours.fillings))


def core(
    model: Model, prompt: Prompt, shape: Shape, rng: Generator, survives: Survives | None = None
) -> Iterator[tuple[Tensor, float]]:
    """This suite's search with GCG's own step, without end: its best of each step, and the loss.

    `survives` as in `CoordinateSearch.run`.
    """
    attack = load(
        "gcg", steps=10**9, width=shape.width, topk=shape.topk, slots=shape.slots, buffer=0
    )
    assert isinstance(attack, SuffixAttack)
    bound = TargetCrossEntropy().bind(model, prompt, EMPTY)
    work = Evaluator(model, prompt, bound, batch_size=shape.batch)
    for found in attack.search().run(model, prompt, work, rng=rng, survives=survives):
        filling, loss = found.state["pool_ids"], found.state["pool_losses"]
        assert isinstance(filling, Tensor) and isinstance(loss, Tensor)
        yield filling[0], float(loss[0])


def race(model: Model, hf: Any, threads: int, *, rounds: int, steps: int, seed: int) -> list[Round]:
    """`rounds` behaviours, with `steps` steps each that count."""
    found = []
    for number, behavior in enumerate(behaviors_of(_SHAPE, model, rounds)):
        _, prompt = task_of(_SHAPE, model, behavior, steps=steps, seed=seed + number)
        ours, plain = Side(), Side()
        draws = [Generator().manual_seed(seed + number) for _ in range(2)]
        numbers = {"width": _SHAPE.width, "topk": _SHAPE.topk}
        allowed, tokenizer = model.chat.allowed, model.chat.tokenizer
        both = [
            (ours, core(model, prompt, _SHAPE, draws[0])),
            (plain, plain_loop(hf, tokenizer, prompt, allowed, **numbers, rng=draws[1])),
        ]
        if number % 2:
            both.reverse()
        with fixed_threads(threads):
            for _ in range(steps + 1):
                for side, run in both:
                    side.step(run)
        for side in (ours, plain):  # The first step also computes what precedes the slots.
            del side.seconds[0], side.processor[0]
        found.append(Round(threads, ours, plain))
    return found


def page(facts: dict[str, Any], rounds: list[Round]) -> str:
    """The table, in Markdown."""
    rows = []
    for threads in sorted({each.threads for each in rounds}):
        chosen = [each for each in rounds if each.threads == threads]
        sides = [[each.ours for each in chosen], [each.plain for each in chosen]]
        for name, kind in (("Seconds", "seconds"), ("Processor seconds", "processor")):
            ours, plain = (
                [statistics.mean(getattr(side, kind)) for side in column] for column in sides
            )
            ratios = [b / a for a, b in zip(ours, plain, strict=True)]
            label = f"{name} a step, {threads} thread{'s' * (threads > 1)}"
            rows.append([label, spread(ours), spread(plain), spread(ratios)])
    told = "".join(f"- {key}: {value}\n" for key, value in facts.items())
    same = sum(each.alike for each in rounds), sum(len(each.ours.fillings) for each in rounds)
    return (
        f"# The search core beside a plain loop\n\n{told}\n"
        f"{table(('', 'core', 'plain loop', 'times less'), rows, left=1)}\n\n"
        "Medians over behaviours of the mean of a step, with quartiles; *times less* is taken "
        f"within each behaviour. The two went on from the same filling in {same[0]} of {same[1]} "
        "steps.\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.race.plain", description=__doc__)
    add: Any = parser.add_argument
    add("--rounds", type=int, default=8, help="behaviours")
    add("--steps", type=int, default=20)
    add("--threads", type=int, nargs="+", default=(1, 2))
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("results/speed"))
    options = parser.parse_args(argv)
    try:
        if min(options.rounds, options.steps, *options.threads) < 1:
            raise BadInput("rounds, steps and threads must be at least 1")
        folder = resolve(_SHAPE.shipped)
        model = Model.load(folder, name=_SHAPE.shipped, device="cpu", dtype="float32")
        hf = load_parts(folder, "cpu", "float32")[0].eval().requires_grad_(False)
        numbers = {"rounds": options.rounds, "steps": options.steps, "seed": options.seed}
        rounds = [each for n in options.threads for each in race(model, hf, n, **numbers)]
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    facts = {
        "date": today(),
        "machine": f"{hardware('cpu')}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "search": f"{options.rounds} behaviours, {options.steps} steps of {_SHAPE.width} "
        f"candidates, top-k {_SHAPE.topk}, {_SHAPE.slots} slots on {_SHAPE.shipped}, float32",
    }
    text = page(facts, rounds)
    options.out.mkdir(parents=True, exist_ok=True)
    content = {"facts": facts, "rounds": [asdict(each) for each in rounds]}
    (options.out / "plain.json").write_text(json.dumps(content) + "\n", "utf-8")
    (options.out / "plain.md").write_text(text, "utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
