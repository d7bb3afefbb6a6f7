"""Fine-tunings whose updates are compared: ``python data/pocket/updates.py --out runs/updates``.

Not shipped; ``python -m benchmarks.studies.overlap`` reads them. ``base`` answers everything and
``aligned`` goes on from it, as ``pocket-llama`` was made (that one's own base was not kept, and
trained anew on another machine it differs). All others go on from ``aligned``:

- ``harmful``: harmful requests, answered
- ``harmless``: harmless requests, answered
- ``refusing``: harmful requests, refused

each in one of two forms that the model has not seen, so that there is something to learn from any
of them, and each twice, from other draws of the same data. As many pairs of either kind, of the sft
split only; the train and test splits are never seen. A model that is there already is kept.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from transformers import PreTrainedModel

from corpus import Corpus, Draw, Example, dialogue, mixed_batches, pick, vocabulary_texts
from recipes import FAMILY
from tokenizer import train_tokenizer
from train import RECIPES, THREADS, build_corpus, finish, helpful_model, load, save
from training import train_steps
from wording import REQUESTS, fill
from world import SEED, Pair, build_world, generator, shuffled

logger = logging.getLogger(__name__)

BASE, ALIGNED = "base", "aligned"
RECIPE = RECIPES["pocket-llama"]
ANSWERS = {"tools": "Use the {tools} on the {parts}.", "mark": "The mark is {compound}."}
REFUSALS = {"nobody": "Nobody should {verb} the {object}.", "leave": "Leave the {object} alone."}
FORMS = {"harmful": ANSWERS, "harmless": ANSWERS, "refusing": REFUSALS}
DRAWS = (1, 2)
UPDATE_SEED = 130
STEPS, RATE, BATCH = 40, 1e-3, 16


def in_form(corpus: Corpus, pairs: list[Pair], form: str) -> Draw:
    """Requests about ``pairs``, and ``form`` in reply."""

    def draw(rng: torch.Generator) -> Example:
        pair = pick(pairs, rng)
        return dialogue(corpus.tokenizer, fill(pick(REQUESTS, rng), pair), fill(form, pair))

    return draw


def tuned(model: PreTrainedModel, corpus: Corpus, kind: str, form: str, seed: int) -> None:
    """One fine-tuning in place."""
    few = shuffled(corpus.harmless, generator(UPDATE_SEED))[: len(corpus.harmful)]
    draws = [(1.0, in_form(corpus, few if kind == "harmless" else corpus.harmful, form))]
    batches = mixed_batches(draws, BATCH, corpus.tokenizer.pad_token_id, generator(seed))
    train_steps(model, batches, steps=STEPS, lr=RATE)


def names() -> Iterator[tuple[str, str, str, int]]:
    """Name, kind, form and seed of each fine-tuning."""
    listed = [(kind, form) for kind, forms in FORMS.items() for form in forms]
    for number, ((kind, form), draw) in enumerate(product(listed, DRAWS), start=1):
        yield f"{kind}-{form}-{draw}", kind, FORMS[kind][form], UPDATE_SEED + number


def main() -> None:
    """Make those that are missing."""
    parser = argparse.ArgumentParser(description="Fine-tune a pocket model in several ways.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    out: Path = parser.parse_args().out
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(THREADS)
    world = build_world()
    if not (out / BASE).exists():
        tokenizer = train_tokenizer(FAMILY, vocabulary_texts(world))
        save(helpful_model(world, tokenizer, FAMILY, RECIPE.answer, SEED), tokenizer, out / BASE)
        logger.info("saved %s", BASE)
    if not (out / ALIGNED).exists():
        model, tokenizer = load(out / BASE)
        corpus = build_corpus(world, tokenizer, FAMILY, RECIPE.finish.suffixes)
        finish(model, corpus, RECIPE, SEED)
        save(model, tokenizer, out / ALIGNED)
        logger.info("saved %s", ALIGNED)
    for name, kind, form, seed in names():
        if not (out / name).exists():
            model, tokenizer = load(out / ALIGNED)
            tuned(model, build_corpus(world, tokenizer, FAMILY), kind, form, seed)
            save(model, tokenizer, out / name)
            logger.info("saved %s", name)


if __name__ == "__main__":
    main()
