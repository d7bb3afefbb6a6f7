"""nanoGCG 0.3.0 racing to success; see `adapter.py` for how it is run and what it is told."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import nanogcg
import torch
import transformers
from adapter import Referee, Stopped
from nanogcg import gcg
from transformers import AutoModelForCausalLM, AutoTokenizer


class Reporting(gcg.AttackBuffer):
    """nanoGCG's buffer, which is asked to log itself at the start and after each step."""

    run: Run

    def log_buffer(self, tokenizer: Any) -> None:
        """Tell the best string so far, the start apart, which is no result of nanoGCG's."""
        loss, ids = self.buffer[0]
        Reporting.run.logged(float(loss), tokenizer.batch_decode(ids)[0])


class Run(gcg.GCG):
    """One run that tells what happens in it."""

    referee: Referee
    request = ""
    best: tuple[float, str] | None = None

    def logged(self, loss: float, string: str) -> None:
        """At the start, or after a step."""
        if self.best is None:
            self.best = (float("inf"), string)
            return
        if loss < self.best[0]:
            self.best = (loss, string)
        self.referee.step(self.request + self.best[1], self.best[0])


def race(model: Any, tokenizer: Any, task: dict[str, Any], referee: Referee) -> None:
    """One search, until its steps are used up or the referee stops it."""
    transformers.set_seed(task["seed"])
    config = nanogcg.GCGConfig(
        num_steps=task["steps"],
        optim_str_init=task["initial"],
        search_width=task["width"],
        batch_size=task["batch"],
        topk=task["topk"],
        verbosity="ERROR",
    )
    run = Run(model, tokenizer, config)
    run.referee, run.request, Reporting.run = referee, task["request"], run
    run.run(task["request"], task["target"])


def main(folder: str, device: str, dtype: str, threads: str) -> None:
    """Load, then do what is asked until the input ends."""
    torch.set_num_threads(int(threads))
    gcg.AttackBuffer = Reporting
    gcg.logger.setLevel("ERROR")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=getattr(torch, dtype))
    model = model.to(device).eval()
    versions = {"nanogcg": "0.3.0", "transformers": transformers.__version__}
    referee = Referee(versions | {"torch": torch.__version__})
    for task in referee.tasks():
        if task["do"] == "prepare":
            referee.prepared()
            continue
        with contextlib.suppress(Stopped):
            race(model, tokenizer, task, referee)
        referee.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
