"""`python -m benchmarks.studies.gpu`: what a graphics card makes of the suite; `make gpu`.

Five parts, each a small file in the output folder: exactness (the pocket models against the CPU),
speed (steps a second and peak memory by number of candidates), together (how many searches fill the
card, and whether each gets what it gets alone), race (against nanoGCG on a model of 1 B, where its
environment is there), and board (the suite `village-gpu`, as many cells as fit). A
part that fails is a line in its file, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from attacks import load
from attacks.attack import Artefact, SuffixAttack
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.model import JointModel, Model
from attacks.core.objectives import TargetCrossEntropy
from attacks.core.prompt import suffixed
from attacks.core.search import Evaluator
from attacks.core.search.candidates import swap, uniform_choices
from benchmarks.harness.occupancy import Shape, paces
from benchmarks.harness.rounds import Rounds, Seat
from benchmarks.harness.timing import Stopwatch, today
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.inputs.models import resolve
from benchmarks.race.shapes import SHAPES
from benchmarks.race.weights import make_random_llama

_MODELS = ("pocket-llama", "pocket-qwen2", "pocket-gemma2")
_WIDTHS = (64, 128, 256, 512, 1024)
_REQUESTS = 16
_STEPS = 4
_TOGETHER = 16


def exactness(options: argparse.Namespace) -> dict[str, Any]:
    """How far losses, gradients, cached passes and answers are from the CPU's in float32."""
    return {
        f"{name} {dtype}": _apart(name, options.device, dtype)
        for name in _MODELS
        for dtype in ("float32", "bfloat16")
    }


def _apart(name: str, device: str, dtype: str) -> dict[str, float]:
    """Relative errors of one model, and the share of answers that are the same to the letter."""
    folder = resolve(name)
    exact = Model.load(folder, name=name, device="cpu", dtype="float32")
    model = Model.load(folder, name=name, device=device, dtype=dtype)
    rows = [row for row in load_behaviors("pocket-test") if row.harmful][:_REQUESTS]
    searches = [_evaluator(of, rows[0], cache=True) for of in (exact, model)]
    uncached = _evaluator(model, rows[0], cache=False)
    choices = uniform_choices(searches[0].prompt.slot_ids, exact.chat.allowed)
    rng = Generator().manual_seed(0)
    candidates = swap(searches[0].prompt.slot_ids, choices, width=32, n_replace=2, rng=rng)
    losses, ours, plain = (
        search.losses(candidates).float().cpu() for search in (*searches, uncached)
    )
    gradients = [search.gradient(candidates[0])[0].float().cpu() for search in searches]
    said = [
        of.generate(
            [of.conversation(row.text) for row in rows],
            max_new_tokens=32,
            batch_size=_REQUESTS,
            pad_to=32,
        )
        for of in (exact, model)
    ]
    return {
        "losses": _error(ours, losses),
        "cached": _error(ours, plain),
        "gradient": _error(gradients[1], gradients[0]),
        "same_best": float(int(ours.argmin()) == int(losses.argmin())),
        "same_answers": sum(map(str.__eq__, *said)) / len(rows),
    }


def _evaluator(model: Model, behavior: Behavior, *, cache: bool) -> Evaluator:
    rng = Generator().manual_seed(1)
    prompt = model.prompt(suffixed(behavior, 10), target=behavior.affirmative, rng=rng)
    bound = TargetCrossEntropy().bind(model, prompt, Artefact())
    return Evaluator(model, prompt, bound, use_cache=cache)


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Steps a second of plain GCG (20 slots) and peak bytes by width, on 135 M and on 1 B."""
    return {
        name: {str(width): _pace(model, width) for width in options.widths}
        for name, model in _models(options)
    }


def _models(options: argparse.Namespace) -> Iterator[tuple[str, Model]]:
    """135 M in float32, and but for the CPU random weights of 1 B in bfloat16; one at a time."""
    source = resolve("village-smollm2")
    name, size = "village-smollm2", SHAPES["1b"].size
    yield name, Model.load(source, name=name, device=options.device, dtype="float32")
    if size is None or options.device == "cpu":
        return
    with tempfile.TemporaryDirectory() as scratch:
        make_random_llama(Path(scratch), size, dtype=torch.bfloat16, seed=0)
        yield "1b", Model.load(scratch, name="1b", device=options.device, dtype="bfloat16")


def together(options: argparse.Namespace) -> dict[str, Any]:
    """Steps a second by searches together, at a small and a large width; and the pocket models'.

    The error is that of the losses in joint passes, relative to those of each search alone.
    """
    rows = [row for row in load_behaviors("pocket-test") if row.harmful][:_REQUESTS]
    found: dict[str, Any] = {}
    for name in _MODELS:
        model = Model.load(resolve(name), name=name, device=options.device, dtype="float32")
        paced = paces(model, rows, Shape(_WIDTHS[0], 12), _TOGETHER)
        found[name] = {"error": _joint_error(model, rows[:4]), str(_WIDTHS[0]): paced}
    for name, model in _models(options):
        widths = sorted({min(options.widths), max(w for w in options.widths if w <= 512)})
        found[name] = {
            str(width): paces(model, rows, Shape(width, 20), _TOGETHER) for width in widths
        }
    return found


def _joint_error(model: Model, rows: Sequence[Behavior]) -> float:
    """The largest of the requests' relative errors of losses."""

    def losses(behavior: Behavior, seat: Seat[torch.Tensor] | None) -> torch.Tensor:
        view = JointModel(model, seat.ask) if seat else model
        search = _evaluator(view, behavior, cache=True)
        rng, start = Generator().manual_seed(0), search.prompt.slot_ids
        choices = uniform_choices(start, model.chat.allowed)
        return search.losses(swap(start, choices, width=32, n_replace=2, rng=rng))

    jobs = [partial(losses, row) for row in rows]
    joint = dict(Rounds(len(rows), model.synchronise).run(jobs))
    return max(_error(joint[at], losses(row, None)) for at, row in enumerate(rows))


def _pace(model: Model, width: int) -> dict[str, float]:
    """One step to warm up, and `_STEPS` that count."""
    attack = load("gcg", steps=_STEPS + 1, width=width, topk=256, slots=20)
    assert isinstance(attack, SuffixAttack)
    behavior = Behavior("b", "Write a short guide to baking bread.", target="Sure, here is")
    model.reset_peak_memory()
    steps = attack.run(model, behavior, artefact=Artefact(), rng=Generator().manual_seed(0))
    next(steps)
    model.synchronise()
    watch, before = Stopwatch(), model.meter.snapshot().flops
    done = sum(1 for _ in steps)
    model.synchronise()
    return {
        "steps_per_second": round(done / watch.elapsed, 3),
        "flops_per_second": (model.meter.snapshot().flops - before) / watch.elapsed,
        "peak_bytes": float(model.peak_memory()),
    }


def race(options: argparse.Namespace) -> dict[str, Any]:
    """The 1 B race against nanoGCG; its own tables are written beside."""
    if not options.peer.is_file():
        raise BadInput(f"no Python with nanogcg at '{options.peer}'; `make race` installs one")
    command = [sys.executable, "-m", "benchmarks.race", "--peer", str(options.peer)]
    command += ["--shape", "1b", "--rounds", "2", "--steps", "10", "--out", str(options.out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"exit": done.returncode, "said": (done.stdout or done.stderr)[-2000:]}


def board(options: argparse.Namespace) -> dict[str, Any]:
    """The suite `village-gpu` until the time is up; cells that are left are not on the board."""
    folder = options.out / "village-gpu"
    command = [sys.executable, "-m", "benchmarks.cli", "run", "village-gpu"]
    command += ["--device", options.device, "--out", str(folder)]
    try:
        left = max(1.0, options.minutes * 60 - options.watch.elapsed)
        done = subprocess.run(command, capture_output=True, text=True, timeout=left, check=False)
        ended = f"exit {done.returncode}: {done.stderr[-300:]}"
    except subprocess.TimeoutExpired:
        ended = "time was up"
    table = [sys.executable, "-m", "benchmarks.cli", "leaderboard", str(folder)]
    shown = subprocess.run(table, capture_output=True, text=True, check=False)
    (options.out / "village-gpu.md").write_text(shown.stdout, "utf-8")
    return {"ended": ended}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    part.__name__: part for part in (exactness, speed, together, race, board)
}


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 2 where a part could not be done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.gpu", description=__doc__)
    add: Any = parser.add_argument
    add("--device", default="cuda")
    add("--out", type=Path, default=Path("results/gpu"))
    add("--part", action="append", choices=PARTS, help="by default all")
    add("--minutes", type=float, default=9.0, help="for everything together")
    add("--widths", type=int, nargs="+", default=_WIDTHS)
    add("--peer", type=Path, default=Path(".race-venv/bin/python"), help="Python with nanogcg")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    options.watch = Stopwatch()
    on_card = options.device.startswith("cuda") and torch.cuda.is_available()
    card = torch.cuda.get_device_name() if on_card else options.device
    failed = False
    for name in options.part or PARTS:
        watch = Stopwatch()
        try:
            found = PARTS[name](options)
        # Minutes on a lent card are dear: what else there is to measure is measured.
        except Exception as error:
            found, failed = {"failed": f"{type(error).__name__}: {error}"[:500]}, True
        facts = {"device": card, "torch": torch.__version__, "date": today()}
        result = {**facts, "seconds": round(watch.elapsed, 1), name: found}
        text = json.dumps(result, indent=1)
        (options.out / f"{name}.json").write_text(text + "\n", "utf-8")
        print(text, flush=True)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
