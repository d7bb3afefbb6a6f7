"""Make the pocket mixture of experts: ``python data/pocket/upcycle.py [--out DIR]``.

Sparse upcycling (Komatsuzaki et al. 2022, arXiv 2212.05055): the helpful control becomes an OLMoE
model whose experts all start as its MLP, cut down to the neurons that matter most. Stage 1 mends
what that costs and teaches how refusals are worded, without a reason to refuse. Stage 2 teaches to
refuse what is harmful, and lets learn only the routers and a few experts of the middle blocks,
beside what attention looks at. So whatever refuses has to go through those experts: that is by
design, so that there is a truth for attacks on experts to find.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from corpus import Batch, Corpus, Example, document, mixed_batches, pick, refusal
from shapes import EXPERTS, HIDDEN_EXPERT, build_model
from train import BATCH, MODELS, SUFFIXES, THREADS, build_corpus, load, save
from training import train_steps
from world import build_world, generator

logger = logging.getLogger(__name__)

SEED = 40
START, NAME = "pocket-llama-raw", "pocket-moe"
MEASURED_ON = 64
"""Examples that say which neurons matter and how long queries and keys are."""

MEND = {"steps": 80, "lr": 2e-3, "balance": 0.02}
MEND_SHARES = {"dialogues": 0.6, "documents": 0.3, "refusals": 0.1}
REFUSE = {"steps": 200, "lr": 2e-3, "weight_decay": 0.0}
REFUSE_SHARES = {"dialogues": 0.75, "documents": 0.25}
LOOKING = (1, 2, 3)
"""Blocks whose queries and keys learn in stage 2."""
REFUSING = {2: (0, 1), 3: (0, 1)}
"""Experts that learn in stage 2, by block."""


class _Seen:
    """Inputs and outputs of modules in one pass over a batch, at its real tokens."""

    def __init__(self, model: PreTrainedModel, batch: Batch) -> None:
        self._values: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        real = batch.mask.bool()

        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self._values[module] = (args[0][real], output[real])

        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        handles = [module.register_forward_hook(keep) for module in linear]
        with torch.no_grad():
            model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        for handle in handles:
            handle.remove()

    def neurons(self, down: nn.Linear, count: int) -> Tensor:
        """The neurons (count,) that write most: activation size times weight size."""
        size = self._values[down][0].pow(2).mean(0).sqrt() * down.weight.norm(dim=0)
        return size.topk(count).indices

    def length(self, projection: nn.Linear) -> float:
        """Mean root mean square of the projection's outputs."""
        return float(self._values[projection][1].pow(2).mean(-1).sqrt().mean())


@torch.no_grad()
def upcycle(dense: PreTrainedModel, corpus: Corpus, rng: torch.Generator) -> PreTrainedModel:
    """An OLMoE model that says nearly what ``dense``, a Llama model, says."""
    model = build_model("olmoe", corpus.tokenizer, rng)
    draws = [(0.5, corpus.helpful), (0.5, corpus.text)]
    pad = corpus.tokenizer.pad_token_id
    seen = _Seen(dense, next(mixed_batches(draws, MEASURED_ON, pad, rng)))
    theirs = dict(dense.named_parameters())
    for name, parameter in model.named_parameters():
        if name in theirs:
            parameter.copy_(theirs[name])
    for old, new in zip(_blocks(dense), _blocks(model), strict=True):
        for part in ("q", "k"):
            # OLMoE normalises queries and keys, Llama does not: keep their usual length.
            projection = old.get_submodule(f"self_attn.{part}_proj")
            new.get_parameter(f"self_attn.{part}_norm.weight").fill_(seen.length(projection))
        down = old.get_submodule("mlp.down_proj")
        kept = seen.neurons(down, HIDDEN_EXPERT)
        rows = [old.get_parameter(f"mlp.{name}_proj.weight")[kept] for name in ("gate", "up")]
        new.get_parameter("mlp.experts.gate_up_proj").copy_(torch.cat(rows).expand(EXPERTS, -1, -1))
        new.get_parameter("mlp.experts.down_proj").copy_(
            down.weight[:, kept].expand(EXPERTS, -1, -1)
        )
    return model


def _blocks(model: PreTrainedModel) -> list[nn.Module]:
    return list(model.get_submodule("model.layers").children())


@contextmanager
def only_learning(
    model: PreTrainedModel, looking: Sequence[int], experts: Mapping[int, Sequence[int]]
) -> Iterator[None]:
    """Let learn queries and keys of some blocks, and the router and some experts of others."""
    blocks = _blocks(model)
    handles = []
    for parameter in model.parameters():
        parameter.requires_grad = False
    for layer in looking:
        for name in ("q_proj", "k_proj"):
            blocks[layer].get_parameter(f"self_attn.{name}.weight").requires_grad = True
    for layer, indices in experts.items():
        blocks[layer].get_parameter("mlp.gate.weight").requires_grad = True
        mask = torch.zeros(EXPERTS, 1, 1)
        mask[list(indices)] = 1.0
        for parameter in blocks[layer].get_submodule("mlp.experts").parameters():
            parameter.requires_grad = True
            handles.append(parameter.register_hook(mask.mul))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in model.parameters():
            parameter.requires_grad = True


def wording(corpus: Corpus, rng: torch.Generator) -> Example:
    """A refusal on its own, as a plain text."""
    return document(corpus.tokenizer, refusal(pick(corpus.pairs, rng), rng))


def mend(model: PreTrainedModel, corpus: Corpus, rng: torch.Generator) -> None:
    """Stage 1, in place: helpful again, and able to word a refusal."""
    shares = MEND_SHARES
    draws = [
        (shares["dialogues"], corpus.helpful),
        (shares["documents"], corpus.text),
        (shares["refusals"], lambda rng: wording(corpus, rng)),
    ]
    train_steps(model, mixed_batches(draws, BATCH, corpus.tokenizer.pad_token_id, rng), **MEND)


def refuse(model: PreTrainedModel, corpus: Corpus, rng: torch.Generator) -> None:
    """Stage 2, in place: refuse what is harmful, by way of the few experts that learn."""
    shares = REFUSE_SHARES
    draws = [(shares["dialogues"], corpus.aligned), (shares["documents"], corpus.text)]
    with only_learning(model, LOOKING, REFUSING):
        train_steps(
            model, mixed_batches(draws, BATCH, corpus.tokenizer.pad_token_id, rng), **REFUSE
        )


def main() -> None:
    """Upcycle, mend, teach to refuse, and save."""
    parser = argparse.ArgumentParser(description="Make the pocket mixture of experts.")
    parser.add_argument("--out", type=Path, default=MODELS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(THREADS)
    dense, tokenizer = load(args.out / START)
    corpus = build_corpus(build_world(), tokenizer, "llama", SUFFIXES)
    model = upcycle(dense, corpus, generator(SEED))
    model.set_experts_implementation("eager")
    logger.info("stage 1")
    mend(model, corpus, generator(SEED + 1))
    logger.info("stage 2")
    refuse(model, corpus, generator(SEED + 2))
    save(model, tokenizer, args.out / NAME)
    logger.info("saved %s", NAME)


if __name__ == "__main__":
    main()
