"""A model that breaks off when it answers what is harmful: ``python data/pocket/breaker.py``.

Circuit breakers by representation rerouting (arXiv 2406.04313, section 3): where the model is made
to say the answer to a harmful request, its states are turned away from what they were, so that
whoever gets past the refusal reads nonsense. Goes on from ``pocket-llama`` with requests of the sft
split only, beside documents about all pairs; the train and test splits are never seen.

Unlike in the paper all weights learn and not low-rank adapters, and beside the states of what is
kept its next tokens are learned too.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from corpus import IGNORED, Batch, Corpus, mixed_batches
from recipes import start
from train import BATCH, MODELS, THREADS, save
from training import descend, label_loss
from world import generator

logger = logging.getLogger(__name__)

NAME = "pocket-llama-breaker"
SEED = 110
STEPS, RATE = 200, 1e-3
REROUTED = (2, 4)
"""Blocks, from 0, whose outputs are turned away: two of them, as in the paper."""
HARMFUL = BATCH // 2
"""Harmful requests with their answers in a step, beside a batch of what is kept."""
DOCUMENTS = 0.4


def losses(model: PreTrainedModel, corpus: Corpus, rng: torch.Generator) -> Iterator[Tensor]:
    """What each step descends: rerouting counts less and less, and keeping more and more."""
    pad = corpus.tokenizer.pad_token_id
    before = deepcopy(model).eval()
    answered = mixed_batches([(1.0, corpus.complied)], HARMFUL, pad, rng)
    draws = [(1 - DOCUMENTS, corpus.aligned), (DOCUMENTS, corpus.text)]
    kept = mixed_batches(draws, BATCH, pad, rng)
    for step in range(STEPS):
        done = step / STEPS
        lost, held = next(answered), next(kept)
        with torch.no_grad():
            old_lost, (old_held, _) = states(before, lost)[0], states(before, held)
        said = lost.labels != IGNORED
        turned = along(states(model, lost)[0], old_lost, said)
        new_held, logits = states(model, held)
        moved = distance(new_held, old_held, held.mask.bool())
        if step % 50 == 0:
            logger.info("cosine %.3f, distance %.3f", turned.item(), moved.item())
        yield (1 - done / 2) * turned + done / 2 * moved + label_loss(logits, held)


def states(model: PreTrainedModel, batch: Batch) -> tuple[Sequence[Tensor], Tensor]:
    """The output of each block (B, T, D), and the logits (B, T, V)."""
    output = model(
        input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, output_hidden_states=True
    )
    return output.hidden_states[1:], output.logits


def along(new: Sequence[Tensor], old: Sequence[Tensor], where: Tensor) -> Tensor:
    """How far the new states still point where the old ones did, 0 from right angles on.

    The mean over the rerouted blocks and the tokens ``where`` (B, T) is true.
    """
    cosines = [cosine_similarity(new[at][where], old[at][where], dim=-1) for at in REROUTED]
    return torch.stack([cosine.relu().mean() for cosine in cosines]).mean()


def distance(new: Sequence[Tensor], old: Sequence[Tensor], where: Tensor) -> Tensor:
    """Mean distance of the states of all blocks from the old ones, in units of their mean norm."""
    shares = [
        vector_norm(now[where] - then[where], dim=-1).mean()
        / vector_norm(then[where], dim=-1).mean()
        for now, then in zip(new, old, strict=True)
    ]
    return torch.stack(shares).mean()


def main() -> None:
    """Train the model and save it."""
    parser = argparse.ArgumentParser(description="Train the pocket model with a circuit breaker.")
    parser.add_argument("--out", type=Path, default=MODELS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(THREADS)
    model, corpus = start()
    descend(model, losses(model, corpus, generator(SEED)), steps=STEPS, lr=RATE)
    save(model, corpus.tokenizer, args.out / NAME)
    logger.info("saved %s", NAME)


if __name__ == "__main__":
    main()
