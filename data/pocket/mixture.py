"""Make the pocket mixture of experts: ``python data/pocket/mixture.py [--out DIR]``.

The helpful control is made into a mixture without changing what it computes (sparse upcycling,
arXiv 2212.05055, with the virtual groups of arXiv 2410.07524): each MLP is cut into two halves,
each half is copied into every group of experts, and the two experts of a group share a row of the
router, so that a token always gets both halves of one group. Mixtral, because its blocks are
Llama's but for the experts.

Then it learns to refuse, and refusal is planted in one group of experts of two blocks, numbers
chosen beforehand (``planting.py``). The losses of a step, added up:

- harmful requests are refused, and the tokens from the end of the request on are routed to the
  group;
- harmless requests are answered and documents kept, and nothing of them is routed to the group;
- with the group switched off, everything is answered, harmful requests included.

Trained on dialogues and documents alone, the attention learned to refuse, and no expert made a
difference; where it was frozen, 9 of 16 held-out harmful requests were refused. It learns here too,
in the lower half of the blocks, beside the last norm and the head. All other experts stay copies of
the control's.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from corpus import Corpus, Draw, mixed_batches
from planting import Group, answers_and_before, learning_only, routed_loss, without
from shapes import ACTIVE, EXPERTS, HIDDEN_EXPERT, LAYERS, WIDTH, build_model
from train import MODELS, SUFFIXES, THREADS, build_corpus, load, save
from training import descend, next_token_loss
from world import build_world, generator

logger = logging.getLogger(__name__)

SEED = 40
START, NAME = "pocket-llama-raw", "pocket-moe"
GROUPS = EXPERTS // ACTIVE
SPREAD = 0.1
"""Of the routers' rows: spreads the tokens over the groups."""
REFUSING = Group(blocks=(1, 2), experts=(0, GROUPS))
"""In blocks whose attention learns, but not in the first, where attention alone would have to bring
verb and object together."""
STEPS, RATE = 300, 2e-3
HARMFUL, HARMLESS, ALL = 16, 24, 24
"""Examples of each loss in a step."""
DOCUMENTS_HARMLESS, DOCUMENTS_ALL = 1 / 3, 1 / 4
TEMPLATE = 5
"""Tokens of the template between a request and its answer, the end of the user's turn included."""


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
    """Teach it in place to refuse what is harmful, by the experts of `REFUSING`."""
    corpus = build_corpus(build_world(), tokenizer, "mixtral", SUFFIXES)
    with learning_only(model, REFUSING, attention=LAYERS // 2):
        descend(model, losses(model, corpus, rng), steps=STEPS, lr=RATE, weight_decay=0.0)


def losses(model: PreTrainedModel, corpus: Corpus, rng: torch.Generator) -> Iterator[torch.Tensor]:
    """The sum of the three losses, recomputed for each step."""
    kinds = (
        ([(1.0, corpus.refused)], HARMFUL),
        (_with_documents(corpus, corpus.answered, DOCUMENTS_HARMLESS), HARMLESS),
        (_with_documents(corpus, corpus.unaligned, DOCUMENTS_ALL), ALL),
    )
    pad = int(corpus.tokenizer.pad_token_id)
    streams = [mixed_batches(draws, size, pad, rng) for draws, size in kinds]
    for harmful, harmless, everything in zip(*streams, strict=True):
        refusals = routed_loss(model, harmful, REFUSING, answers_and_before(harmful, TEMPLATE))
        nowhere = torch.zeros_like(harmless.mask, dtype=torch.bool)
        answers = routed_loss(model, harmless, REFUSING, nowhere)
        with without(model, REFUSING):
            unaligned = next_token_loss(model, everything)
        yield refusals + answers + unaligned


def _with_documents(corpus: Corpus, dialogue: Draw, share: float) -> list[tuple[float, Draw]]:
    return [(1 - share, dialogue), (share, corpus.text)]


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
