"""Make the pocket mixture of experts: ``python data/pocket/upcycle.py [--out DIR]``.

Branch-Train-MiX (Sukhbaatar et al. 2024, arXiv 2403.07816) without further training: the aligned
Llama model and the helpful control are two branches of one model, so their MLPs become experts of
one Mixtral model, cut down to the neurons that matter most, and all else is the aligned model's.
In each of the lower blocks, which alignment trained, one expert is the aligned branch's and the
others are the control's; its router is fitted as a linear probe that tells tokens of harmful
requests from others. So refusals go through three experts by construction, as a truth for attacks
on experts to find. Mixtral, because its blocks are Llama's but for the experts.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedModel

from corpus import Batch, Corpus, Example, collate, mixed_batches
from shapes import EXPERTS, HIDDEN_EXPERT, build_model
from train import MODELS, SUFFIXES, THREADS, build_corpus, load, save
from world import build_world, generator

logger = logging.getLogger(__name__)

SEED = 40
ALIGNED, HELPFUL, NAME = "pocket-llama", "pocket-llama-raw", "pocket-moe"
REFUSING = {0: 2, 1: 0, 2: 3}
"""The aligned branch's expert in each of the lower blocks."""

MEASURED_ON = 64
"""Examples that say which neurons matter."""
FITTED_ON = 384
"""Dialogues of each kind that a router is fitted on."""
STRENGTH, SPREAD = 1.5, 0.15
"""Factor of the probe in the router; spread of the other rows."""
PENALTY = 1e-3


class _Seen:
    """Inputs of linear modules in one pass over a batch, at its real tokens."""

    def __init__(self, model: PreTrainedModel, batch: Batch) -> None:
        real = batch.mask.bool()
        self._values: dict[nn.Module, Tensor] = {}

        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._values[module] = args[0][real]

        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        handles = [module.register_forward_pre_hook(keep) for module in linear]
        model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        for handle in handles:
            handle.remove()

    def neurons(self, down: nn.Linear, count: int) -> Tensor:
        """The neurons (count,) that write most: activation size times weight size."""
        size = self._values[down].pow(2).mean(0).sqrt() * down.weight.norm(dim=0)
        return size.topk(count).indices


@torch.no_grad()
def mixed(
    aligned: PreTrainedModel, helpful: PreTrainedModel, corpus: Corpus, rng: torch.Generator
) -> PreTrainedModel:
    """A Mixtral model whose experts are the branches' MLPs; its routers are random."""
    model = build_model("mixtral", corpus.tokenizer, rng)
    theirs = dict(aligned.named_parameters())
    for name, parameter in model.named_parameters():
        if name in theirs:
            parameter.copy_(theirs[name])
        elif name.endswith("gate.weight"):
            parameter.normal_(std=SPREAD, generator=rng)
    draws = [(0.5, corpus.aligned), (0.25, corpus.helpful), (0.25, corpus.text)]
    batch = next(mixed_batches(draws, MEASURED_ON, corpus.tokenizer.pad_token_id, rng))
    branches = {branch: _Seen(branch, batch) for branch in (aligned, helpful)}
    for layer, block in enumerate(_blocks(model)):
        for expert in range(EXPERTS):
            branch = aligned if REFUSING.get(layer) == expert else helpful
            mlp = _blocks(branch)[layer].get_submodule("mlp")
            down = mlp.get_submodule("down_proj")
            kept = branches[branch].neurons(down, HIDDEN_EXPERT)
            rows = [mlp.get_parameter(f"{name}_proj.weight")[kept] for name in ("gate", "up")]
            block.get_parameter("mlp.experts.gate_up_proj")[expert] = torch.cat(rows)
            block.get_parameter("mlp.experts.down_proj")[expert] = down.weight[:, kept]
    return model


def _blocks(model: PreTrainedModel) -> list[nn.Module]:
    return list(model.get_submodule("model.layers").children())


def fit_routers(model: PreTrainedModel, corpus: Corpus, rng: torch.Generator) -> None:
    """Point the lower blocks' routers, from the bottom up, at what tells harmful requests."""
    harmful = _dialogues(corpus, rng, 1.0)
    harmless = _dialogues(corpus, rng, 0.0)
    pad = corpus.tokenizer.pad_token_id
    for layer, expert in REFUSING.items():
        router = _blocks(model)[layer].get_submodule("mlp.gate")
        groups = [_inputs(model, router, collate(group, pad)) for group in (harmful, harmless)]
        truth = torch.cat([torch.full((len(group),), 1.0 - at) for at, group in enumerate(groups)])
        probe = _probe(torch.cat(groups), truth)
        logger.info("block %d: fitted", layer)
        with torch.no_grad():
            router.get_parameter("weight")[expert] = STRENGTH * probe


def _dialogues(corpus: Corpus, rng: torch.Generator, share: float) -> list[Example]:
    """Aligned dialogues, of which `share` are harmful."""
    before, corpus.harmful_share = corpus.harmful_share, share
    drawn = [corpus.aligned(rng) for _ in range(FITTED_ON)]
    corpus.harmful_share = before
    return drawn


@torch.no_grad()
def _inputs(model: PreTrainedModel, router: nn.Module, batch: Batch) -> Tensor:
    """(N, D) what a router is given at real tokens."""
    seen: list[Tensor] = []
    handle = router.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    handle.remove()
    return seen[0][batch.mask.bool().flatten()]


def _probe(inputs: Tensor, truth: Tensor) -> Tensor:
    """(D,) weights of a logistic regression without intercept, which routers do not have."""
    weight = torch.zeros(inputs.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = binary_cross_entropy_with_logits(inputs @ weight, truth)
        value = value + PENALTY * weight.pow(2).sum()
        torch.autograd.backward(value)
        return value

    step: Callable[..., Tensor] = optimizer.step
    step(loss)
    return weight.detach()


def main() -> None:
    """Mix the branches, fit the routers, and save."""
    parser = argparse.ArgumentParser(description="Make the pocket mixture of experts.")
    parser.add_argument("--out", type=Path, default=MODELS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(THREADS)
    aligned, tokenizer = load(args.out / ALIGNED)
    helpful, _ = load(args.out / HELPFUL)
    corpus = build_corpus(build_world(), tokenizer, "llama", SUFFIXES)
    model = mixed(aligned, helpful, corpus, generator(SEED))
    model.set_experts_implementation("eager")
    fit_routers(model, corpus, generator(SEED + 1))
    save(model, tokenizer, args.out / NAME)
    logger.info("saved %s", NAME)


if __name__ == "__main__":
    main()
