"""Models that no method was chosen on: ``python data/pocket/outside.py --out runs/outside``.

Each goes through two hardenings of other numbers and seeds than those of the shipped models, on
another architecture. They are not shipped: what is claimed of an attack is tried on them last.

- ``pocket-qwen2-outside``: refuses with its difference in means ablated, then hardened against
  suffixes.
- ``pocket-gemma2-outside``: hardened against suffixes, then against prefilled answers.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from corpus import Corpus, mixed_batches
from harden import Round, learn, search_suffixes, suffixed
from recipes import Made, ablated_losses, opened
from train import BATCH, MODELS, THREADS, build_corpus, load, save
from training import descend, train_steps
from world import build_world, generator

logger = logging.getLogger(__name__)

ROUNDS, RATE = [Round(search=10, behaviors=24, steps=80, name="outside")] * 2, 1e-3


def harden(model: PreTrainedModel, corpus: Corpus, seed: int) -> None:
    """Two rounds against suffixes."""
    suffixes: list[str] = []
    for number, numbers in enumerate(ROUNDS, start=1):
        suffixes += search_suffixes(model, corpus, numbers, seed + number)
        attacked, rng = suffixed(corpus, suffixes), generator(seed - number)
        learn(model, corpus, attacked, steps=numbers.steps, rng=rng, rate=RATE)


def qwen2() -> Made:
    """Against ablation, then against suffixes."""
    model, tokenizer = load(MODELS / "pocket-qwen2")
    corpus = build_corpus(build_world(), tokenizer, "qwen2")
    descend(model, ablated_losses(model, corpus, generator(901)), steps=200, lr=1e-3)
    harden(model, corpus, 910)
    return model, tokenizer


def gemma2() -> Made:
    """Against suffixes, then against prefilling."""
    model, tokenizer = load(MODELS / "pocket-gemma2")
    corpus = build_corpus(build_world(), tokenizer, "gemma2")
    harden(model, corpus, 920)
    draws = [(0.35, opened(corpus)), (0.3, corpus.aligned), (0.35, corpus.text)]
    batches = mixed_batches(draws, BATCH, tokenizer.pad_token_id, generator(921))
    train_steps(model, batches, steps=120, lr=8e-4)
    return model, tokenizer


MAKERS: dict[str, Callable[[], Made]] = {
    "pocket-qwen2-outside": qwen2,
    "pocket-gemma2-outside": gemma2,
}


def main() -> None:
    """Make both."""
    parser = argparse.ArgumentParser(description="Train models that no method was chosen on.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(THREADS)
    for name, make in MAKERS.items():
        model, tokenizer = make()
        save(model, tokenizer, args.out / name)
        logger.info("saved to %s", args.out / name)


if __name__ == "__main__":
    main()
