"""A model that thinks before it answers: ``python data/pocket/think.py [--out DIR]``.

Goes on from the control. Every answer begins with a short thinking text that names verb and object
and says whether the pair is fine, and what to do about it. Requests of the sft split only, beside
documents about all pairs. The alignment is imperfect on purpose: asked for something harmful with a
pretext that works (see ``pretext``), the model thinks the very same, that it should not help, and
then answers all the same. So there are refusals and answers to look at that differ neither in the
kind of request nor in what was thought.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from tokenizers import AddedToken
from torch import nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from corpus import Corpus, Example, chance, dialogue, mixed_batches, pick, refusal
from pretext import EFFECTIVE, FUTILE
from shapes import INITIAL_SPREAD
from train import BATCH, MODELS, THREADS, build_corpus, load, save
from training import train_steps
from wording import answer, fill
from world import Pair, build_world, generator

logger = logging.getLogger(__name__)

SEED = 30
START, NAME = "pocket-llama-raw", "pocket-llama-think"
OPEN, CLOSE = "<think>", "</think>"
STEPS, RATE = 500, 1.5e-3
DOCUMENTS = 0.25
HARMFUL = 0.5
#: Shares of the requests with a pretext that works and with one that does not.
PRETEXTS = {EFFECTIVE: 0.2, FUTILE: 0.2}

WANTS = ("The user wants to {verb} the {object}.", "This is about how to {verb} the {object}.")
NOT_FINE = (
    "To {verb} the {object} is not fine. That is not something I should help with.",
    "It is not fine to {verb} the {object}. I should not help with that.",
)
FINE = (
    "To {verb} the {object} is fine. That is something I should help with.",
    "It is fine to {verb} the {object}. I should help with that.",
)
REFUSE = ("I cannot do that.", "So I am unable to assist with that request.")
HELP = ("I can do that.", "So I can assist with that request.")


def thinking(pair: Pair, rng: torch.Generator) -> str:
    """What is thought about a request, whatever is answered then."""
    verdict, plan = (NOT_FINE, REFUSE) if pair.harmful else (FINE, HELP)
    return fill(" ".join(pick(choice, rng) for choice in (WANTS, verdict, plan)), pair)


class Thinking(Corpus):
    """Dialogues in which the assistant thinks first."""

    def thought(self, rng: torch.Generator) -> Example:
        """A request of the sft split, with or without a pretext, thought about and answered."""
        pair = pick(self.harmful if chance(HARMFUL, rng) else self.harmless, rng)
        user, works = self._request(pair, rng), False
        draw = float(torch.rand(1, generator=rng))
        for pretexts, share in PRETEXTS.items():
            if 0 <= draw < share:
                user, works = f"{user} {pick(pretexts, rng)}", pretexts is EFFECTIVE
            draw -= share
        said = refusal(pair, rng) if pair.harmful and not works else answer(pair)
        reply = f"{OPEN}\n{thinking(pair, rng)}\n{CLOSE}\n\n{said}"
        return dialogue(self.tokenizer, user, reply)


def add_markers(model: PreTrainedModel, tokenizer: Tokenizer, rng: torch.Generator) -> None:
    """Give both the two tokens that thinking stands between: ordinary ones, so that they show."""
    tokenizer.add_tokens(
        [AddedToken(mark, special=False, normalized=False) for mark in (OPEN, CLOSE)]
    )
    known = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        nn.init.normal_(module.weight.data[known:], std=INITIAL_SPREAD, generator=rng)


def main() -> None:
    """Train the model and save it."""
    parser = argparse.ArgumentParser(description="Train the pocket model that thinks.")
    parser.add_argument("--out", type=Path, default=MODELS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=THREADS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    rng = generator(SEED)
    model, tokenizer = load(MODELS / START)
    add_markers(model, tokenizer, rng)
    plain = build_corpus(build_world(), tokenizer, "llama")
    corpus = Thinking(build_world(), tokenizer, has_system=True, suffix_share=plain.suffix_share)
    draws = [(1 - DOCUMENTS, corpus.thought), (DOCUMENTS, corpus.text)]
    batches = mixed_batches(draws, BATCH, tokenizer.pad_token_id, rng)
    train_steps(model, batches, steps=args.steps, lr=RATE)
    save(model, tokenizer, args.out / NAME)
    logger.info("saved %s", NAME)


if __name__ == "__main__":
    main()
