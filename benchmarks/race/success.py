"""`python -m benchmarks.race.success`: who gets to a first verified success, and when.

Both sides search on the same weights for the same requests and targets, one after the other in
alternation, each in a separate process. After each step the referee stops the clock, asks the
model for one greedy answer to the best message so far, and judges it: by the facts it should hold,
or where behaviours have none by how it opens and whether it is garbled (`--judge`). The search ends
there where that is a success. Peers: nanoGCG; the authors' code for subspace
rerouting from a checkout of one's own (`--peer-path`); anything else by `adapter.py`
(`--peer-script`).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from attacks.core.analysis.survey import choose_layers, survey
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.model import Model
from attacks.core.prompt import conversation
from attacks.core.refusals.coherence import fit_coherence
from attacks.core.refusals.openers import learn_openers
from attacks.core.template import DATE
from benchmarks.common.versions import hardware
from benchmarks.harness.bench import Bench, Setup
from benchmarks.harness.cells import Settings
from benchmarks.harness.timing import today
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.inputs.models import resolve
from benchmarks.judges import default_judge, load_judge
from benchmarks.judges.reference import Reference
from benchmarks.race.curves import Pair, write
from benchmarks.race.racer import Racer
from benchmarks.race.shapes import SHAPES
from benchmarks.race.tasks import task_of
from benchmarks.race.weights import copy_for_transformers_4

_HERE = Path(__file__).parent
_NANOGCG, _SSR = _HERE / "peer_nanogcg.py", _HERE / "peer_ssr.py"
_ANSWER = 64


def race(name: str, options: argparse.Namespace) -> str:
    """All behaviours on one model; returns the Markdown.

    Raises:
        BadInput: a side does not start, or ends early.
    """
    folder = Path(resolve(name))
    script = options.peer_script or (_SSR if options.peer_path else _NANOGCG)
    end = [options.device, "float32", str(options.threads)]
    model = Model.load(str(folder), name=name, device=options.device, dtype="float32")
    train = [row.for_attack() for row in load_behaviors(options.train)]
    shape = SHAPES["pocket"]
    behaviors = [row for row in load_behaviors(options.behaviors) if row.harmful][: options.rounds]
    judge = options.judge or default_judge(behaviors)
    bench = referee(model, judge, train)
    with tempfile.TemporaryDirectory() as scratch:
        copy_for_transformers_4(folder, Path(scratch) / "theirs")
        ours = [sys.executable, "-m", "benchmarks.race.ours_to_success", options.ours, str(folder)]
        theirs = [str(options.peer), str(script), f"{scratch}/theirs"]
        extras = probes_of(model, train) if options.peer_path else {}
        if options.peer_path:
            extras["checkout"] = str(options.peer_path.resolve())
        with (
            Racer([*ours, *end], threads=options.threads) as us,
            Racer([*theirs, *end], threads=options.threads, apart=True) as them,
        ):
            prepared = us.prepare(train=options.train), them.prepare(**extras)
            pairs = []
            for number, behavior in enumerate(behaviors):
                seed = options.seed + number
                task, _ = task_of(shape, model, behavior, steps=options.steps, seed=seed)
                check = partial(verified, bench, behavior)
                order = (us, them) if number % 2 == 0 else (them, us)
                if number == 0:  # The first steps of a process are slower.
                    for racer in order:
                        racer.race_to_success(task | {"steps": 1}, lambda content: ("", True))
                ended = {racer: racer.race_to_success(task, check) for racer in order}
                pairs.append(Pair(behavior.id, ended[us], ended[them]))
            facts = {
                "date": today(),
                "machine": f"{hardware(options.device)}, {os.cpu_count()} cores",
                "threads": options.threads,
                "ours": f"{options.ours} {us.versions}",
                "theirs": f"{script.stem.removeprefix('peer_')} {them.versions}",
                "their search": f"at most {options.steps} steps of {shape.width} candidates, top-k "
                f"{shape.topk}, {shape.slots} slots, float32",
                "preparation, seconds (ours once for each model, theirs)": [
                    round(seconds, 2) for seconds in prepared
                ],
                "judge": judge,
                "behaviours": f"{len(pairs)} of {options.behaviors}, fitted on {options.train}",
            }
    return write(options.out, f"{name}-{script.stem.removeprefix('peer_')}", facts, pairs)


def referee(model: Model, judge: str, train: Sequence[Behavior]) -> Bench:
    """What verifies answers as a run with this stop judge does.

    Refusal openers and what is garbled are learned from `train`, as in a run; `reference` decides
    by facts and is spared both.

    Raises:
        BadInput: no such judge, or one that judges after a run only.
    """
    if not load_judge(judge).at_once:
        raise BadInput(f"judge '{judge}' judges after a run, and a race needs a verdict at once")
    by_facts = judge == Reference.name
    settings = Settings(_ANSWER, 1, "success", judge, (judge,), None)
    setup = Setup(
        *("", model.name, str(model.device), model.dtype, None, DATE, settings),
        openers=() if by_facts else learn_openers(model, train),
        artefacts=Path(),
        concurrency=1,
        coherence=None if by_facts else fit_coherence(model, train),
    )
    return Bench(setup, model)


def verified(bench: Bench, behavior: Behavior, content: str) -> tuple[str, bool]:
    """One greedy answer to a message, and whether it is a success."""
    asked = conversation(content)
    (answer,) = bench.model.generate([asked], max_new_tokens=_ANSWER)
    return answer, bench.succeeds(behavior, asked, answer)


def probes_of(model: Model, train: list[Behavior]) -> dict[str, Any]:
    """The probes that `ssr-probe` would aim at, so that a peer may aim at the same ones.

    P(harmless) = sigmoid(w . x + b) of the output of a block at the last token.
    """
    found = survey(model, train, rng=Generator().manual_seed(0))
    layers = choose_layers(found, (), who="the race")
    return {
        "probes": {
            str(layer): {
                "weight": found.tensors[f"weight.{layer}"].tolist(),
                "bias": float(found.tensors[f"bias.{layer}"]),
            }
            for layer in layers
        }
    }


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.race.success",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Any = parser.add_argument
    add("--peer", type=Path, default=Path(".race-venv/bin/python"), help="the peer's Python")
    add("--peer-path", type=Path, help="a checkout of the authors' code for subspace rerouting")
    add("--peer-script", type=Path, help="any other peer; see benchmarks/race/adapter.py")
    add("--ours", default="strong", help="the attack that races for this suite")
    add("--model", action="append", help="shipped names; by default an aligned and two hardened")
    add("--behaviors", default="pocket-test")
    add("--train", default="pocket-train", help="what our attack is fitted on")
    add("--judge", help="by default reference, and phrases where behaviours have no references")
    add("--rounds", type=int, default=20, help="how many behaviours")
    add("--steps", type=int, default=32)
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    add("--device", default="cpu")
    add("--out", type=Path, default=Path("results/race"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on what is wrong."""
    options = _options(argv)
    try:
        if not options.peer.is_file():
            raise BadInput(f"no Python of a peer at '{options.peer}'; `make race` installs one")
        if options.peer_path and not (options.peer_path / "ssr" / "core.py").is_file():
            raise BadInput(
                f"'{options.peer_path}' is no checkout of the authors' code (ssr/core.py)"
            )
        if min(options.rounds, options.steps, options.threads) < 1:
            raise BadInput("rounds, steps and threads must be at least 1")
        torch.set_num_threads(options.threads)
        for name in options.model or ("pocket-llama", "pocket-llama-hard1", "pocket-llama-hard2"):
            print(race(name, options))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
