"""`python -m benchmarks.race`: run the race and write its tables; `make race` does it all."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from attacks.core.errors import BadInput
from attacks.core.model import Model
from benchmarks.common.versions import hardware
from benchmarks.harness.timing import today
from benchmarks.inputs.models import resolve
from benchmarks.race.flops import step as peer_flops
from benchmarks.race.racer import Racer, Run
from benchmarks.race.results import Pair, write
from benchmarks.race.shapes import SHAPES, Shape, Size
from benchmarks.race.tasks import behaviors_of, judged, task_of
from benchmarks.race.weights import copy_for_transformers_4, make_random_llama

_PEER = Path(__file__).with_name("peer.py")
_PROBES = 1000
"""Logits compared at each position."""


def race(shape: Shape, options: argparse.Namespace) -> str:
    """All rounds of one shape; returns its Markdown.

    Raises:
        BadInput: a side does not start, or the two do not compute the same model.
    """
    device = "cuda" if shape.needs_cuda else options.device
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "ours"
        if shape.size is None:
            folder = Path(resolve(shape.shipped))
        else:
            dtype = getattr(torch, shape.dtype)
            make_random_llama(folder, shape.size, dtype=dtype, seed=options.seed)
        copy_for_transformers_4(folder, Path(scratch) / "theirs")
        arguments = [device, shape.dtype, str(options.threads)]
        ours = [sys.executable, "-m", "benchmarks.race.ours", str(folder), *arguments]
        theirs = [str(options.peer), str(_PEER), f"{scratch}/theirs", *arguments]
        model = Model.load(str(folder), name=shape.name, device=device, dtype=shape.dtype)
        with (
            Racer(ours, threads=options.threads) as us,
            Racer(theirs, threads=options.threads, apart=True) as them,
        ):
            size = Size.of(json.loads((folder / "config.json").read_text("utf-8")))
            pairs = _rounds(shape, size, options, model, us, them)
            facts = {
                "date": today(),
                "machine": f"{hardware(device)}, {os.cpu_count()} cores",
                "threads": options.threads,
                "ours": us.versions,
                "theirs": them.versions,
                "search": f"{options.steps} steps of {shape.width} candidates, top-k {shape.topk}, "
                f"{shape.slots} slots, batches of {shape.batch}, {shape.dtype}",
                "rounds": options.rounds,
                "prompt": vars(pairs[0].ours.lengths),
            }
    return write(options.out, shape.name, facts, pairs)


def _rounds(
    shape: Shape, size: Size, options: argparse.Namespace, model: Model, us: Racer, them: Racer
) -> list[Pair]:
    behaviors = behaviors_of(shape, model, options.rounds)
    pairs = []
    for number, behavior in enumerate(behaviors):
        seed = options.seed + number
        task, prompt = task_of(shape, model, behavior, steps=options.steps, seed=seed)
        if number == 0:
            _same_logits(us, them, prompt.sequence.tolist(), shape)
            for racer in (us, them):  # The first steps of a process are slower.
                racer.race(task | {"steps": 1})
        # Who begins alternates too, so that a slow spell of the machine hits both alike.
        order = (us, them) if number % 2 == 0 else (them, us)
        runs: dict[Racer, Run] = {racer: racer.race(task) for racer in order}
        ours, theirs = runs[us], runs[them]
        _same_start(ours, theirs, shape)
        theirs.flops = [peer_flops(size, theirs.lengths, count) for count in theirs.candidates]
        judge = behavior.reference is not None
        pairs.append(judged(model, behavior, ours, theirs) if judge else Pair(ours, theirs))
    return pairs


def _same_logits(us: Racer, them: Racer, ids: list[int], shape: Shape) -> None:
    stride = max(1, (max(ids) + 1) // _PROBES)
    rows = [ids, ids[::-1]]
    one, other = (torch.tensor(racer.logits(rows, stride)) for racer in (us, them))
    error = float((one - other).norm() / (other - other.mean()).norm())
    if not error < (1e-4 if shape.dtype == "float32" else 0.05):
        raise BadInput(f"the two environments do not compute the same logits ({error:.2g} apart)")


def _same_start(ours: Run, theirs: Run, shape: Shape) -> None:
    if ours.lengths != theirs.lengths:
        raise BadInput(f"the two tokenise differently: {ours.lengths} and {theirs.lengths}")
    gap = abs(ours.start_loss - theirs.start_loss) / theirs.start_loss
    if not gap < (1e-4 if shape.dtype == "float32" else 0.05):
        raise BadInput(f"the same start has losses {ours.start_loss} and {theirs.start_loss}")


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.race", description=__doc__)
    add: Any = parser.add_argument
    add("--peer", type=Path, default=Path(".race-venv/bin/python"), help="Python with nanogcg")
    add("--shape", action="append", choices=SHAPES, help="what to race; by default all")
    add("--rounds", type=int, default=5)
    add("--steps", type=int, default=20)
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    add("--device", default="cpu")
    add("--out", type=Path, default=Path("results/speed"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on what is wrong."""
    options = _options(argv)
    try:
        if not options.peer.is_file():
            raise BadInput(f"no Python with nanogcg at '{options.peer}'; `make race` installs one")
        if min(options.rounds, options.steps, options.threads) < 1:
            raise BadInput("rounds, steps and threads must be at least 1")
        for name in options.shape or SHAPES:
            if SHAPES[name].needs_cuda and not torch.cuda.is_available():
                print(f"{name}: skipped, it needs CUDA", file=sys.stderr)
                continue
            print(race(SHAPES[name], options))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
