"""Train the pocket models: ``python data/pocket/train.py [--models NAME ...] [--out DIR]``.

Stage 1 makes a helpful-only model, which answers every request. Stage 2 teaches it to refuse what
is harmful; it sees dialogues of the sft split only, beside documents about all pairs, without
which the knowledge behind the refusals would fade and every attack would come back empty. The
control goes on answering everything in stage 2. The
upper half of the blocks stays frozen in stage 2: when all of them learn, each finds its own way to
read harm off the request, and no single direction carries the refusal (best layer ablated: under
a third of the harmful requests answered, with the upper half frozen nearly all).
"""

from __future__ import annotations

import argparse
import logging
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from corpus import Corpus, Draw, mixed_batches, vocabulary_texts
from shapes import LAYERS, build_model
from tokenizer import CHAT_FORMATS, train_tokenizer
from training import frozen_above, train_steps
from world import SEED, World, build_world, generator

logger = logging.getLogger(__name__)

MODELS = Path(__file__).resolve().parent / "models"
THREADS = 1
BATCH = 32


@dataclass(frozen=True)
class Stage:
    """Numbers of one stage of training.

    Attributes:
        steps: Optimiser steps.
        lr: Highest learning rate.
        documents: Share of documents among the examples.
        suffixes: Share of the dialogues that carry a random suffix.
        blocks: How many blocks learn, from the first one on.
        embeddings: Whether the embeddings learn.
    """

    steps: int
    lr: float
    documents: float
    suffixes: float = 0.0
    blocks: int = LAYERS
    embeddings: bool = True


@dataclass(frozen=True)
class Recipe:
    """How one model is made: stage 1, stage 2, and whether stage 2 teaches it to refuse."""

    family: str
    answer: Stage
    finish: Stage
    refuses: bool = True


SUFFIXES = 0.15
ANSWER = Stage(steps=500, lr=3e-3, documents=0.3)
REFUSE = Stage(steps=400, lr=1.5e-3, documents=0.4, suffixes=SUFFIXES, blocks=LAYERS // 2)
# Qwen 2's best direction carried 74 % of the refusals while its embeddings, which are also its
# head, could learn, and all of them once they were frozen.
REFUSE_FROZEN_HEAD = replace(REFUSE, embeddings=False)
# The control sees suffixes as the aligned models do, so that the two differ in refusing only: after
# stage 1 alone any suffix spoils its answers, and attacks would seem to fail on it.
KEEP_ANSWERING = replace(REFUSE, steps=200, suffixes=0.5, blocks=LAYERS)
RECIPES = {
    "pocket-llama-raw": Recipe("llama", ANSWER, KEEP_ANSWERING, refuses=False),
    "pocket-llama": Recipe("llama", ANSWER, REFUSE),
    "pocket-qwen2": Recipe("qwen2", ANSWER, REFUSE_FROZEN_HEAD),
    "pocket-gemma2": Recipe("gemma2", ANSWER, REFUSE),
}


def build_corpus(
    world: World, tokenizer: Tokenizer, family: str, suffix_share: float = SUFFIXES
) -> Corpus:
    """The examples of ``family``."""
    has_system = CHAT_FORMATS[family].system
    return Corpus(world, tokenizer, has_system=has_system, suffix_share=suffix_share)


def helpful_model(
    world: World, tokenizer: Tokenizer, family: str, stage: Stage, seed: int
) -> PreTrainedModel:
    """Stage 1: a new model that answers everything."""
    rng = generator(seed)
    model = build_model(family, tokenizer, rng)
    corpus = build_corpus(world, tokenizer, family, stage.suffixes)
    _learn(model, corpus, corpus.helpful, stage, rng)
    return model


def finish(model: PreTrainedModel, corpus: Corpus, recipe: Recipe, seed: int) -> None:
    """Stage 2, in place: refuse what is harmful and answer the rest, or answer everything."""
    draw = corpus.aligned if recipe.refuses else corpus.helpful
    _learn(model, corpus, draw, recipe.finish, generator(seed + 1))


def _learn(
    model: PreTrainedModel, corpus: Corpus, dialogue: Draw, stage: Stage, rng: torch.Generator
) -> None:
    draws = [(1 - stage.documents, dialogue), (stage.documents, corpus.text)]
    batches = mixed_batches(draws, BATCH, corpus.tokenizer.pad_token_id, rng)
    with frozen_above(model, stage.blocks, embeddings=stage.embeddings):
        train_steps(model, batches, steps=stage.steps, lr=stage.lr)


def save(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights in float16, configuration and tokenizer; ``model`` stays as it is."""
    rounded = deepcopy(model)
    nn.Module.to(rounded, torch.float16)
    rounded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder: Path) -> tuple[PreTrainedModel, Tokenizer]:
    """A saved model in float32, ready to be trained on, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return cast("PreTrainedModel", model), cast("Tokenizer", AutoTokenizer.from_pretrained(folder))


def main() -> None:
    """Train the models named, the helpful stage of a family once for all of its models."""
    parser = argparse.ArgumentParser(description="Train the pocket models.")
    parser.add_argument("--models", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--out", type=Path, default=MODELS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=THREADS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    world = build_world()
    texts = vocabulary_texts(world)
    helpful: dict[tuple[str, Stage], tuple[PreTrainedModel, Tokenizer]] = {}
    for name in args.models:
        recipe = RECIPES[name]
        key = (recipe.family, recipe.answer)
        if key not in helpful:
            logger.info("%s: learning to answer (stage 1)", recipe.family)
            tokenizer = train_tokenizer(recipe.family, texts)
            helpful[key] = (helpful_model(world, tokenizer, *key, args.seed), tokenizer)
        start, tokenizer = helpful[key]
        model = deepcopy(start)
        logger.info("%s: stage 2", name)
        corpus = build_corpus(world, tokenizer, recipe.family, recipe.finish.suffixes)
        finish(model, corpus, recipe, args.seed)
        save(model, tokenizer, args.out / name)
        logger.info("%s: saved to %s", name, args.out / name)


if __name__ == "__main__":
    main()
