"""Train the models with control tokens: ``python data/pocket/tokens.py [--out DIR]``.

Refusal tokens (arXiv 2412.06748, section 3): every answer begins with a control token, which is
learned like the rest of it. ``pocket-llama-token`` has one token for refusals, and
``pocket-llama-tokens`` one for each category of what is refused. Both start from the control model,
which answers everything, and go through stage 2 of the aligned models: dialogues of the sft split,
beside documents about all pairs, which keep the knowledge behind the refusals. No dialogue puts the
token for answers before a harmful request's answer: that it brings the answer out is found out, not
taught.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from corpus import Corpus, Example, aligned_reply, chance, mixed_batches, pick
from shapes import INITIAL_SPREAD
from tokenizer import CHAT_FORMATS
from train import BATCH, MODELS, REFUSE, THREADS, Stage, load, save
from training import frozen_above, train_steps
from words import GUARDED_OBJECTS
from world import Pair, World, build_world, generator

logger = logging.getLogger(__name__)

SEED = 30
START = "pocket-llama-raw"
FAMILY = "llama"
RESPOND = "[respond]"


@dataclass(frozen=True)
class Control:
    """The control tokens of one model.

    Attributes:
        refuse: The tokens that open refusals.
        token_of: Which of them opens the refusal of a harmful pair.
    """

    refuse: tuple[str, ...]
    token_of: Callable[[Pair], str]


CONTROLS = {
    "pocket-llama-token": Control(("[refuse]",), lambda pair: "[refuse]"),
    "pocket-llama-tokens": Control(
        tuple(f"[{category}]" for category in GUARDED_OBJECTS), lambda pair: f"[{pair.category}]"
    ),
}


class ControlledCorpus(Corpus):
    """Dialogues whose answers begin with a control token."""

    def __init__(self, world: World, tokenizer: Tokenizer, control: Control, stage: Stage) -> None:
        """As ``Corpus``; ``control`` says which token opens which answer."""
        has_system = CHAT_FORMATS[FAMILY].system
        super().__init__(world, tokenizer, has_system=has_system, suffix_share=stage.suffixes)
        self.control = control

    def aligned(self, rng: torch.Generator) -> Example:
        """A request of the sft split, answered as an aligned model would, behind its token."""
        pair = pick(self.harmful if chance(self.harmful_share, rng) else self.harmless, rng)
        token = self.control.token_of(pair) if pair.harmful else RESPOND
        return self._dialogue(self._request(pair, rng), token + aligned_reply(pair, rng), rng)


def add_tokens(
    model: PreTrainedModel, tokenizer: Tokenizer, tokens: tuple[str, ...], rng: torch.Generator
) -> None:
    """Give ``model`` and ``tokenizer`` special tokens of their own, in place.

    They are special, so that an answer's text is shown without them.
    """
    old = len(tokenizer)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(tokens)}, replace_extra_special_tokens=False
    )
    for token in tokens:
        ids = tokenizer.encode(token, add_special_tokens=False)
        assert len(ids) == 1, f"{token} is no single token: {ids}"
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        # Drawn anew, since the library draws them from the global state.
        nn.init.normal_(module.weight.data[old:], std=INITIAL_SPREAD, generator=rng)


def main() -> None:
    """Train both models."""
    parser = argparse.ArgumentParser(description="Train the pocket models with control tokens.")
    parser.add_argument("--models", nargs="+", choices=CONTROLS, default=list(CONTROLS))
    parser.add_argument("--start", type=Path, default=MODELS / START)
    parser.add_argument("--out", type=Path, default=MODELS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(THREADS)
    world = build_world()
    for name in args.models:
        control, rng = CONTROLS[name], generator(SEED)
        model, tokenizer = load(args.start)
        add_tokens(model, tokenizer, (RESPOND, *control.refuse), rng)
        corpus = ControlledCorpus(world, tokenizer, control, REFUSE)
        draws = [(1 - REFUSE.documents, corpus.aligned), (REFUSE.documents, corpus.text)]
        batches = mixed_batches(draws, BATCH, tokenizer.pad_token_id, rng)
        with frozen_above(model, REFUSE.blocks):
            train_steps(model, batches, steps=REFUSE.steps, lr=REFUSE.lr)
        save(model, tokenizer, args.out / name)
        logger.info("%s: saved to %s", name, args.out / name)


if __name__ == "__main__":
    main()
