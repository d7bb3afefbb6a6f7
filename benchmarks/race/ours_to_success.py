"""An attack of this suite racing to success, in a separate process.

    python -m benchmarks.race.ours_to_success SPEC FOLDER DEVICE DTYPE THREADS

See `adapter.py` for what it is told. Asked to prepare it fits the attack on the behaviours named.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch
from torch import Generator

from attacks.attack import Artefact, Attack, Behavior
from attacks.core.artefact import EMPTY
from attacks.core.model import Model
from attacks.registry import parse_spec
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.race.adapter import Referee, Stopped


def search(model: Model, attack: Attack, fitted: Artefact, task: Any, referee: Referee) -> None:
    """One search, until its steps are used up or the referee stops it."""
    behavior = Behavior("race", task["request"], target=task["target"])
    rng = Generator().manual_seed(task["seed"])
    with contextlib.suppress(Stopped):
        for step in attack.run(model, behavior, artefact=fitted, rng=rng):
            referee.step(step.prompts[0][-1].content, step.loss or 0.0)
    referee.end()


def main(spec: str, folder: str, device: str, dtype: str, threads: str) -> None:
    """Load, then do what is asked until the input ends."""
    torch.set_num_threads(int(threads))
    attack, model = parse_spec(spec), Model.load(folder, device=device, dtype=dtype)
    fitted = EMPTY
    referee = Referee({"torch": torch.__version__})
    for task in referee.tasks():
        if task["do"] == "prepare":
            train = [row.for_attack() for row in load_behaviors(task["train"])]
            fitted = attack.prepare(model, train, rng=Generator().manual_seed(0))
            referee.prepared()
        else:
            search(model, attack, fitted, task, referee)


if __name__ == "__main__":
    main(*sys.argv[1:])
