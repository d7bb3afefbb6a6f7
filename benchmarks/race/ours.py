"""This suite's GCG as a racer, in a separate process.

    python -m benchmarks.race.ours FOLDER DEVICE DTYPE THREADS

Reads tasks and writes what happens, one JSON object a line (see `racer.py`).
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from typing import Any

import torch
from torch import Generator, Tensor

from attacks.attack import SuffixAttack
from attacks.core.artefact import EMPTY
from attacks.core.behavior import Behavior
from attacks.core.model import Model
from attacks.core.objectives import TargetCrossEntropy
from attacks.core.prompt import Prompt, suffixed
from attacks.core.search import Evaluator
from attacks.core.sites import Site
from attacks.registry import load

_PACKAGES = ("torch", "transformers", "nnsight")


class _Watched:
    """An evaluator that tells the loss it starts from, and counts the candidates."""

    def __init__(self, evaluator: Evaluator, racer: _Racer, prompt: Prompt) -> None:
        self._evaluator = evaluator
        self._racer = racer
        self._prompt = prompt
        self.evaluated = 0
        self._started = False

    def losses(self, candidates: Tensor, k: int | None = None) -> Tensor:
        losses = self._evaluator.losses(candidates, k)
        if not self._started:
            self._started = True
            slots, length = self._prompt.slots, len(self._prompt.ids)
            self._racer.tell(
                event="start",
                loss=float(losses[0]),
                before=int(slots[0]),
                after=length - int(slots[-1]) - 1,
                target=len(self._prompt.target_ids),
            )
        else:
            self.evaluated += len(candidates)
        return losses

    def gradient(self, candidate: Tensor) -> tuple[Tensor, float]:
        return self._evaluator.gradient(candidate)


class _Racer:
    def __init__(self, folder: str, device: str, dtype: str, threads: int) -> None:
        self._lines = os.fdopen(os.dup(1), "w", buffering=1)
        torch.set_num_threads(threads)
        self._model = Model.load(folder, device=device, dtype=dtype)
        versions = {name: version(name) for name in _PACKAGES} | {"torch": torch.__version__}
        self.tell(event="ready", versions=versions)

    def tell(self, **content: Any) -> None:
        """Write one line for the referee."""
        self._lines.write(json.dumps(content) + "\n")

    def logits(self, rows: list[list[int]], stride: int) -> None:
        """Every `stride`-th logit after the last token of each of `rows`."""
        ids = torch.tensor(rows)
        read = Site(-1, "logits", (ids.shape[1] - 1,))
        with torch.no_grad():
            logits = self._model.trace(ids, [read])[read][:, 0].float()
        self.tell(event="logits", logits=logits[:, ::stride].tolist())

    def race(self, task: dict[str, Any]) -> None:
        """One search, which moves to the best candidate of each step as nanoGCG does."""
        model, request = self._model, task["request"]
        numbers = {name: task[name] for name in ("steps", "width", "topk", "slots")}
        attack = load("gcg", **numbers, buffer=0)
        assert isinstance(attack, SuffixAttack)
        rng = Generator().manual_seed(task["seed"])
        behavior = Behavior("race", request, target=task["target"])
        start = torch.cuda.memory_allocated() if model.device.type == "cuda" else 0
        model.reset_peak_memory()
        prompt = model.prompt(
            suffixed(behavior, attack.slots),
            target=behavior.target,
            rng=rng,
            init=torch.tensor(task["filling"]),
        )
        bound = TargetCrossEntropy().bind(model, prompt, EMPTY)
        watched = _Watched(Evaluator(model, prompt, bound, batch_size=task["batch"]), self, prompt)
        before = model.meter.snapshot().flops
        counted = 0
        for found in attack.search().run(model, prompt, watched, rng=rng):
            content = model.chat.messages(prompt, found.ids[:1])[0][-1].content
            flops = model.meter.snapshot().flops
            self.tell(
                event="step",
                loss=float(found.losses[0]),
                string=content[len(request) :],
                candidates=watched.evaluated - counted,
                flops=flops - before,
            )
            before, counted = flops, watched.evaluated
        peak = model.peak_memory() - start if model.device.type == "cuda" else None
        self.tell(event="end", peak=peak)


def main(folder: str, device: str, dtype: str, threads: str) -> None:
    """Load, then do what is asked until the input ends."""
    racer = _Racer(folder, device, dtype, int(threads))
    for line in sys.stdin:
        task = json.loads(line)
        if task["do"] == "race":
            racer.race(task)
        else:
            racer.logits(task["rows"], task["stride"])


if __name__ == "__main__":
    main(*sys.argv[1:])
