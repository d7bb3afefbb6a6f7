"""nanoGCG 0.3.0 as a racer. Runs in a separate environment, where this suite is not installed.

    python peer.py FOLDER DEVICE DTYPE THREADS

Reads tasks and writes what happens, one JSON object a line (see `racer.py`). nanoGCG itself is left
as it is; only its log of each step goes to the referee instead of the terminal.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import nanogcg
import torch
import transformers
from nanogcg import gcg
from transformers import AutoModelForCausalLM, AutoTokenizer

_lines = os.fdopen(os.dup(1), "w", buffering=1)
sys.stdout = sys.stderr  # nanoGCG prints when memory runs out.


def tell(**content: Any) -> None:
    """Write one line for the referee."""
    _lines.write(json.dumps(content) + "\n")


class Reporting(gcg.AttackBuffer):
    """nanoGCG's buffer, which is asked to log itself at the start and after each step."""

    run: Run

    def log_buffer(self, tokenizer: Any) -> None:
        """Tell the best loss and string so far."""
        loss, ids = self.buffer[0]
        self.run.logged(float(loss), tokenizer.batch_decode(ids)[0])


class Run(gcg.GCG):
    """One run that tells what happens in it."""

    def init_buffer(self) -> Any:
        """As it is, with the lengths of the prompt told."""
        self.best: tuple[float, str] | None = None
        Reporting.run = self
        return super().init_buffer()

    def logged(self, loss: float, string: str) -> None:
        """At the start, or after a step; the start does not count as a result of nanoGCG's."""
        if self.best is None:
            self.best = (float("inf"), string)
            parts = (self.before_embeds, self.after_embeds, self.target_embeds)
            before, after, target = (part.shape[1] for part in parts)
            tell(event="start", loss=loss, before=before, after=after, target=target)
            return
        if loss < self.best[0]:
            self.best = (loss, string)
        tell(event="step", loss=self.best[0], string=self.best[1], candidates=survivors[-1])


survivors: list[int] = []
_filter = gcg.filter_ids


def counted(ids: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """NanoGCG's filter; how many candidates come through is noted."""
    kept = _filter(ids, tokenizer)
    survivors.append(len(kept))
    return kept


def race(model: Any, tokenizer: Any, task: dict[str, Any]) -> None:
    """One search."""
    # Not by its own `seed`, which would also force slower deterministic kernels.
    transformers.set_seed(task["seed"])
    config = nanogcg.GCGConfig(
        num_steps=task["steps"],
        optim_str_init=task["initial"],
        search_width=task["width"],
        batch_size=task["batch"],
        topk=task["topk"],
        verbosity="ERROR",
    )
    start = torch.cuda.memory_allocated() if model.device.type == "cuda" else 0
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    Run(model, tokenizer, config).run(task["request"], task["target"])
    peak = torch.cuda.max_memory_allocated() - start if model.device.type == "cuda" else None
    tell(event="end", peak=peak)


def main(folder: str, device: str, dtype: str, threads: str) -> None:
    """Load, then do what is asked until the input ends."""
    torch.set_num_threads(int(threads))
    gcg.AttackBuffer = Reporting
    gcg.filter_ids = counted
    gcg.logger.setLevel("ERROR")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=getattr(torch, dtype))
    model = model.to(device).eval()
    versions = {"nanogcg": "0.3.0", "transformers": transformers.__version__}
    tell(event="ready", versions=versions | {"torch": torch.__version__})
    for line in sys.stdin:
        task = json.loads(line)
        if task["do"] == "race":
            race(model, tokenizer, task)
        else:
            with torch.no_grad():
                ids = torch.tensor(task["rows"], device=model.device)
                logits = model(input_ids=ids).logits[:, -1].float()
            tell(event="logits", logits=logits[:, :: task["stride"]].tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])
