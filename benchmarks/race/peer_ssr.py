"""The SSR authors' search racing to success; see `adapter.py` for how it is run and told what.

Runs their `SSR` (a checkout of github.com/Sckathach/subspace-rerouting, `ssr/core.py`) with their
probe loss, binary cross-entropy to "harmless" at the last token, on the probes that the race gives.
Their probes are trained by scripts of theirs on data of theirs, and their models are named ones.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
import transformer_lens
import transformers
from adapter import Referee, Stopped
from transformer_lens import HookedTransformer, loading_from_pretrained
from transformers import AutoModelForCausalLM, AutoTokenizer

MASK = "[MASK]"


def probe_ssr(checkout: str) -> type[Any]:
    """Their search with the probe loss, which reports after each step."""
    sys.path.insert(0, checkout)
    from ssr.core import SSR

    class ProbeSSR(SSR):  # type: ignore[misc]
        probes: dict[int, tuple[torch.Tensor, float]]
        referee: Referee
        request: str

        def setup(self) -> None:
            self.seen: dict[str, torch.Tensor] = {}
            self.fwd_hooks = [
                (f"blocks.{layer}.hook_resid_post", self.see) for layer in self.probes
            ]

        def see(self, activations: torch.Tensor, hook: Any) -> torch.Tensor:
            self.seen[hook.name] = activations[:, -1].float()
            return activations

        def loss_fn(self, activations: torch.Tensor) -> torch.Tensor:
            losses = [
                torch.nn.functional.softplus(
                    -(self.seen[f"blocks.{layer}.hook_resid_post"] @ weight + bias)
                )
                for layer, (weight, bias) in self.probes.items()
            ]
            return torch.stack(losses).sum(0)

        def buffer_add(self, ids: Any, losses: Any, update_n_replace: bool = True) -> None:
            super().buffer_add(ids, losses, update_n_replace)
            if update_n_replace:
                said = self.tokenizer.decode(self.candidate_ids[0])
                self.referee.step(self.request + said, float(self.candidate_losses[0]))

    return ProbeSSR


def race(search: Any, tokenizer: Any, task: dict[str, Any]) -> None:
    """One search, until its steps are used up or the referee stops it."""
    transformers.set_seed(task["seed"])
    turns = [{"role": "user", "content": task["request"] + MASK * task["slots"]}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    search.request = task["request"]
    search.config.search_width = task["width"]
    search.config.search_topk = task["topk"]
    search.config.max_iterations = task["steps"]
    search.init_prompt(text, MASK)
    search.buffer_init_random()
    search.generate()


def main(folder: str, device: str, dtype: str, threads: str) -> None:
    """Load, then do what is asked until the input ends."""
    torch.set_num_threads(int(threads))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=getattr(torch, dtype))
    # It takes models by name only; a folder is read as any other once it is one of the names.
    loading_from_pretrained.OFFICIAL_MODEL_NAMES.append(folder)
    with contextlib.redirect_stdout(sys.stderr):
        model = HookedTransformer.from_pretrained_no_processing(
            folder, hf_model=plain, tokenizer=tokenizer, device=device, dtype=getattr(torch, dtype)
        )
    versions = {"transformer_lens": getattr(transformer_lens, "__version__", "2")}
    versions |= {"transformers": transformers.__version__, "torch": torch.__version__}
    referee = Referee(versions)
    search: Any = None
    for task in referee.tasks():
        if task.get("do") == "prepare":
            sys.path.insert(0, task["checkout"])
            kind = probe_ssr(task["checkout"])
            from ssr.core import SSRConfig

            search = kind(model, SSRConfig(model_name=Path(folder).name))
            search.referee = referee
            search.probes = {
                int(layer): (torch.tensor(probe["weight"], device=device), probe["bias"])
                for layer, probe in task["probes"].items()
            }
            search.config.max_layer = max(search.probes)
            search.setup()
            referee.prepared()
            continue
        try:
            race(search, tokenizer, task)
        except Stopped:
            pass
        except RuntimeError as error:
            # Of "no token sequences are the same after decoding": that ends their search.
            sys.stderr.write(f"{error}\n")
        referee.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
