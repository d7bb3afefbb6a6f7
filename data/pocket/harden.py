"""Harden a pocket model against suffixes: ``python data/pocket/harden.py [--out DIR]``.

Rounds of adversarial training: search suffixes against requests of the sft split, then learn to
refuse harmful requests that carry them and to answer harmless ones that do. The levels are
the model after each round; later rounds search longer, since the model gets harder to attack.
The train and test splits are never seen.
"""

from __future__ import annotations

import argparse
import logging
import sys
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from corpus import Corpus, Draw, Example, aligned_reply, chance, dialogue, mixed_batches, pick
from train import MODELS, THREADS, build_corpus, load, save
from training import train_steps
from wording import REQUESTS, TARGET, fill
from world import Pair, build_world, generator

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from attacks import Behavior
from attacks import load as load_attack
from attacks.core.artefact import EMPTY
from attacks.core.model import Model

logger = logging.getLogger(__name__)

SEED = 20
START = "pocket-llama"


@dataclass(frozen=True)
class Round:
    """Numbers of one round.

    Attributes:
        search: Steps of the suffix search.
        behaviors: Requests that are searched against.
        steps: Optimiser steps.
        name: The level that the model is after this round.
    """

    search: int
    behaviors: int
    steps: int
    name: str


ROUNDS = (
    Round(search=8, behaviors=40, steps=80, name="pocket-llama-hard1"),
    Round(search=16, behaviors=40, steps=60, name="pocket-llama-hard2"),
    Round(search=32, behaviors=40, steps=100, name="pocket-llama-hard3"),
)
BATCH = 64
RATE = 5e-4
SHARES = {"suffixes": 0.5, "dialogues": 0.25, "documents": 0.25}
KEPT = 4
"""Suffixes kept of each search, best first."""


def search_suffixes(model: PreTrainedModel, corpus: Corpus, numbers: Round, seed: int) -> list[str]:
    """Suffixes that GCG finds on requests of the sft split."""
    # The search freezes and wraps what it is given, so it gets a copy.
    target = Model(deepcopy(model), corpus.tokenizer, name=START)
    attack = load_attack("gcg", steps=numbers.search, width=64, buffer=0)
    rng = generator(seed)
    suffixes = []
    for _ in range(numbers.behaviors):
        pair = pick(corpus.harmful, rng)
        text = fill(pick(REQUESTS, rng), pair)
        behavior = Behavior("sft", text, target=fill(TARGET, pair))
        *_, last = attack.run(target, behavior, artefact=EMPTY, rng=rng)
        suffixes += [turns[-1].content.removeprefix(text) for turns in last.prompts[:KEPT]]
    return suffixes


def suffixed(corpus: Corpus, suffixes: list[str]) -> Draw:
    """Requests that carry a suffix found, answered as an aligned model would."""

    def draw(rng: torch.Generator) -> Example:
        pair: Pair = pick(corpus.harmful if chance(0.5, rng) else corpus.harmless, rng)
        user = fill(pick(REQUESTS, rng), pair) + pick(suffixes, rng)
        return dialogue(corpus.tokenizer, user, aligned_reply(pair, rng))

    return draw


def learn(
    model: PreTrainedModel,
    corpus: Corpus,
    attacked: Draw,
    *,
    steps: int,
    rng: torch.Generator,
    rate: float = RATE,
) -> None:
    """One round of training in place: ``attacked`` requests, plain dialogues and documents."""
    draws = [
        (SHARES["suffixes"], attacked),
        (SHARES["dialogues"], corpus.aligned),
        (SHARES["documents"], corpus.text),
    ]
    batches = mixed_batches(draws, BATCH, corpus.tokenizer.pad_token_id, rng)
    train_steps(model, batches, steps=steps, lr=rate)


def main() -> None:
    """Run the rounds and save the levels."""
    parser = argparse.ArgumentParser(description="Harden a pocket model against suffixes.")
    parser.add_argument("--out", type=Path, default=MODELS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(THREADS)
    model, tokenizer = load(args.out / START)
    corpus = build_corpus(build_world(), tokenizer, "llama")
    suffixes: list[str] = []
    for number, numbers in enumerate(ROUNDS, start=1):
        logger.info("round %d: searching suffixes", number)
        suffixes += search_suffixes(model, corpus, numbers, SEED + number)
        learn(
            model,
            corpus,
            suffixed(corpus, suffixes),
            steps=numbers.steps,
            rng=generator(SEED - number),
        )
        save(model, tokenizer, args.out / numbers.name)
        logger.info("saved %s", numbers.name)


if __name__ == "__main__":
    main()
