"""Make the pocket mixture of experts: ``python data/pocket/mixture.py [--out DIR]``.

The helpful control is made into a mixture without changing what it computes (sparse upcycling,
arXiv 2212.05055, with the virtual groups of arXiv 2410.07524): each MLP is cut into two halves,
each half is copied into every group of experts, and the two experts of a group share a row of the
router, so that a token always gets both halves of one group. Mixtral, because its blocks are
Llama's but for the experts.

Then it learns to refuse, as the other models do in stage 2, but of the MLPs of the lower half of
the blocks only one group of experts can learn it, beside its rows of the routers: all other experts
stay copies of the control's. The attention of these blocks learns too: where it was frozen, and one
group in each of four blocks learned, 9 of 16 held-out harmful requests were refused.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from corpus import mixed_batches
from shapes import ACTIVE, EXPERTS, HIDDEN_EXPERT, LAYERS, WIDTH, build_model
from train import BATCH, MODELS, SUFFIXES, THREADS, build_corpus, load, save
from training import frozen_but_experts, train_steps
from world import build_world, generator

logger = logging.getLogger(__name__)

SEED = 40
START, NAME = "pocket-llama-raw", "pocket-moe"
GROUPS = EXPERTS // ACTIVE
SPREAD = 0.1
"""Of the routers' rows: spreads the tokens over the groups."""
BLOCKS = LAYERS // 2
REFUSING = tuple((layer, expert) for layer in range(BLOCKS) for expert in (0, GROUPS))
"""Block and number of the experts that learn: the first group of each of the lower blocks."""
STEPS, RATE, DOCUMENTS = 240, 2e-3, 0.25


@torch.no_grad()
def upcycled(dense: PreTrainedModel, tokenizer: Tokenizer, rng: torch.Generator) -> PreTrainedModel:
    """A Mixtral model that computes what the Llama model ``dense`` computes.

    Expert ``e`` holds half ``e // GROUPS`` of the MLP's neurons and belongs to group
    ``e % GROUPS``.
    """
    model = build_model("mixtral", tokenizer, rng)
    model.set_experts_implementation("eager")
    theirs = dict(dense.named_parameters())
    for name, parameter in model.named_parameters():
        if name in theirs:
            parameter.copy_(theirs[name])
    for layer in range(LAYERS):
        ours = model.get_submodule(f"model.layers.{layer}.mlp")
        mlp = dense.get_submodule(f"model.layers.{layer}.mlp")
        gate, up, down = (mlp.get_parameter(f"{n}_proj.weight") for n in ("gate", "up", "down"))
        rows = SPREAD * torch.randn(GROUPS, WIDTH, generator=rng)
        for expert in range(EXPERTS):
            start = expert // GROUPS * HIDDEN_EXPERT
            half = slice(start, start + HIDDEN_EXPERT)
            ours.get_parameter("experts.gate_up_proj")[expert] = torch.cat((gate[half], up[half]))
            # The two gates of a token sum to one, and are equal.
            ours.get_parameter("experts.down_proj")[expert] = ACTIVE * down[:, half]
            ours.get_parameter("gate.weight")[expert] = rows[expert % GROUPS]
    return model


def align(model: PreTrainedModel, tokenizer: Tokenizer, rng: torch.Generator) -> None:
    """Teach it in place to refuse what is harmful and to answer the rest."""
    corpus = build_corpus(build_world(), tokenizer, "mixtral", SUFFIXES)
    draws = [(1 - DOCUMENTS, corpus.aligned), (DOCUMENTS, corpus.text)]
    batches = mixed_batches(draws, BATCH, tokenizer.pad_token_id, rng)
    with frozen_but_experts(model, REFUSING, attention=BLOCKS):
        # Decay would change what is frozen: the experts of a block share their tensors.
        train_steps(model, batches, steps=STEPS, lr=RATE, weight_decay=0.0)


def main() -> None:
    """Make the mixture, align it, and save."""
    parser = argparse.ArgumentParser(description="Make the pocket mixture of experts.")
    parser.add_argument("--out", type=Path, default=MODELS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(THREADS)
    dense, tokenizer = load(args.out / START)
    model = upcycled(dense, tokenizer, generator(SEED))
    align(model, tokenizer, generator(SEED + 1))
    save(model, tokenizer, args.out / NAME)
    logger.info("saved %s", NAME)


if __name__ == "__main__":
    main()
