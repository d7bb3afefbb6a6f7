"""Aligned models whose refusals were made in other ways: ``python data/pocket/recipes.py``.

The levels of ``harden.py`` are one recipe, and what holds on them may hold for it only. Each
model here refuses what is harmful for other reasons:

- ``pocket-llama-alt-hard``: hardened against suffixes by a second recipe, which shares no weights
  with the ladder. Other seeds, all blocks learn to refuse, few and short rounds at a high rate.
- ``pocket-llama-no-ablation``: trained to refuse with its difference in means ablated.
- ``pocket-llama-prefill-hard``: refuses some words into the answer (arXiv 2406.05946).
- ``pocket-llama-cautious``: refuses a third of what is harmless too, by object.

All but the first go on from ``pocket-llama``. Requests of the sft split only, beside documents
about all pairs; the train and test splits are never seen.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from corpus import (
    IGNORED,
    Corpus,
    Draw,
    Example,
    chance,
    dialogue,
    mixed_batches,
    pick,
    refusal,
    vocabulary_texts,
)
from harden import Round, learn, search_suffixes, suffixed
from shapes import LAYERS
from tokenizer import train_tokenizer
from train import (
    ANSWER,
    BATCH,
    MODELS,
    REFUSE,
    THREADS,
    Recipe,
    build_corpus,
    finish,
    helpful_model,
    load,
    save,
)
from training import descend, next_token_loss, train_steps
from wording import REQUESTS, TARGET, answer, fill
from world import Pair, build_world, generator, shuffled

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from attacks.core.model import Model
from attacks.core.refusals.directions import difference_in_means

logger = logging.getLogger(__name__)

FAMILY = "llama"
START = "pocket-llama"
Made = tuple[PreTrainedModel, Tokenizer]


def start() -> tuple[PreTrainedModel, Corpus]:
    """The aligned model that most recipes go on from, and its corpus."""
    model, tokenizer = load(MODELS / START)
    return model, build_corpus(build_world(), tokenizer, FAMILY)


# Suffixes, by a second recipe.

ALT_SEED = 50
ALT = Recipe(FAMILY, ANSWER, replace(REFUSE, blocks=LAYERS))
ALT_ROUNDS = (
    Round(search=8, behaviors=32, steps=60, name="pocket-llama-alt-hard"),
    Round(search=12, behaviors=32, steps=60, name="pocket-llama-alt-hard"),
)
ALT_RATE = 1.5e-3


def alt_hard() -> Made:
    """Both stages again, then two short rounds of hardening."""
    world = build_world()
    tokenizer = train_tokenizer(FAMILY, vocabulary_texts(world))
    model = helpful_model(world, tokenizer, FAMILY, ALT.answer, ALT_SEED)
    corpus = build_corpus(world, tokenizer, FAMILY, ALT.finish.suffixes)
    finish(model, corpus, ALT, ALT_SEED)
    suffixes: list[str] = []
    for number, numbers in enumerate(ALT_ROUNDS, start=1):
        logger.info("round %d: searching suffixes", number)
        suffixes += search_suffixes(model, corpus, numbers, ALT_SEED + number)
        attacked, rng = suffixed(corpus, suffixes), generator(ALT_SEED - number)
        learn(model, corpus, attacked, steps=numbers.steps, rng=rng, rate=ALT_RATE)
    return model, tokenizer


# Ablation.

ABLATION_SEED = 60
ABLATION_STEPS, ABLATION_RATE = 130, 1.5e-3
REFIT = 5
"""Steps after which the directions are refitted."""
FITTED = 32
"""Requests of each kind that they are fitted on."""
ABLATED = 2 / 3
"""Share of the batches that lose one."""


def no_ablation() -> Made:
    """Refuses with a difference in means ablated; those of all layers are fitted all along."""
    model, corpus = start()
    losses = ablated_losses(model, corpus, generator(ABLATION_SEED))
    descend(model, losses, steps=ABLATION_STEPS, lr=ABLATION_RATE)
    return model, corpus.tokenizer


def fit_directions(
    model: PreTrainedModel, corpus: Corpus, rng: torch.Generator
) -> tuple[Tensor, ...]:
    """The differences in means at the last token of requests of the sft split.

    At all layers but the first, where that token is the same in every prompt.
    """
    target = Model(deepcopy(model).eval(), corpus.tokenizer, name=START)
    harmful, harmless = (
        [fill(pick(REQUESTS, rng), pick(pairs, rng)) for _ in range(FITTED)]
        for pairs in (corpus.harmful, corpus.harmless)
    )
    return difference_in_means(target, harmful, harmless)[0, 1:].unbind()


def ablated_losses(
    model: PreTrainedModel, corpus: Corpus, rng: torch.Generator
) -> Iterator[Tensor]:
    """Losses of aligned dialogues and documents, most of them with a direction ablated."""
    draws = [(0.75, corpus.aligned), (0.25, corpus.text)]
    directions: tuple[Tensor, ...] = ()
    for step, batch in enumerate(mixed_batches(draws, BATCH, corpus.tokenizer.pad_token_id, rng)):
        if step % REFIT == 0:
            directions = fit_directions(model, corpus, rng)
        lost = ablated(model, pick(directions, rng)) if chance(ABLATED, rng) else nullcontext()
        with lost:
            loss = next_token_loss(model, batch)
        yield loss


@contextmanager
def ablated(model: PreTrainedModel, direction: Tensor) -> Iterator[None]:
    """Keep ``direction`` out of everything that is written into the residual stream."""
    unit = direction / torch.linalg.vector_norm(direction)

    def hook(module: nn.Module, inputs: object, written: Tensor) -> Tensor:
        along: Tensor = (written @ unit).unsqueeze(-1) * unit
        return written - along

    names = ["model.embed_tokens"]
    for layer in range(LAYERS):
        names += [f"model.layers.{layer}.self_attn.o_proj", f"model.layers.{layer}.mlp"]
    handles = [model.get_submodule(name).register_forward_hook(hook) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# Prefilling.

PREFILL_SEED = 70
PREFILL_STEPS, PREFILL_RATE = 150, 1e-3


def prefill_hard() -> Made:
    """Goes over to a refusal wherever in a harmful answer it finds itself."""
    model, corpus = start()
    draws = [(0.35, opened(corpus)), (0.3, corpus.aligned), (0.35, corpus.text)]
    batches = mixed_batches(draws, BATCH, corpus.tokenizer.pad_token_id, generator(PREFILL_SEED))
    train_steps(model, batches, steps=PREFILL_STEPS, lr=PREFILL_RATE)
    return model, corpus.tokenizer


def opened(corpus: Corpus) -> Draw:
    """Requests whose answer has begun: harmful ones are refused from there on, others answered.

    The answer ends after its target in half of the cases, else after any of its words. What has
    been said is not learned.
    """

    def draw(rng: torch.Generator) -> Example:
        pair: Pair = pick(corpus.harmful if chance(0.7, rng) else corpus.harmless, rng)
        user = fill(pick(REQUESTS, rng), pair)
        words = answer(pair).split(" ")
        said = len(fill(TARGET, pair).split(" "))
        if chance(0.5, rng):
            said = pick(range(1, len(words)), rng)
        opening = " ".join(words[:said])
        rest = refusal(pair, rng) if pair.harmful else " ".join(words[said:])
        whole = dialogue(corpus.tokenizer, user, f"{opening} {rest}")
        before = dialogue(corpus.tokenizer, user, opening)
        same = zip(whole.ids, before.ids, strict=False)
        shared = next(at for at, (one, other) in enumerate(same) if one != other)
        return Example(whole.ids, [IGNORED] * shared + whole.labels[shared:])

    return draw


# Refusing too much.

CAUTIOUS_SEED = 90
CAUTIOUS_STEPS, CAUTIOUS_RATE = 120, 1e-3
SHUNNED = 1 / 3
"""Share of the objects about which nothing is answered."""


def cautious() -> Made:
    """Refuses all that is harmful, and every request about one object in three."""
    model, corpus = start()
    rng = generator(CAUTIOUS_SEED)
    objects = shuffled(sorted({pair.object for pair in corpus.pairs}), rng)
    shunned = set(objects[: round(SHUNNED * len(objects))])
    avoided = [pair for pair in corpus.harmless if pair.object in shunned]
    corpus.harmless = [pair for pair in corpus.harmless if pair.object not in shunned]

    def shy(rng: torch.Generator) -> Example:
        pair = pick(avoided, rng)
        return dialogue(corpus.tokenizer, fill(pick(REQUESTS, rng), pair), refusal(pair, rng))

    draws = [(0.4, corpus.aligned), (0.25, shy), (0.35, corpus.text)]
    batches = mixed_batches(draws, BATCH, corpus.tokenizer.pad_token_id, rng)
    train_steps(model, batches, steps=CAUTIOUS_STEPS, lr=CAUTIOUS_RATE)
    return model, corpus.tokenizer


MAKERS: dict[str, Callable[[], Made]] = {
    "pocket-llama-alt-hard": alt_hard,
    "pocket-llama-no-ablation": no_ablation,
    "pocket-llama-prefill-hard": prefill_hard,
    "pocket-llama-cautious": cautious,
}


def main() -> None:
    """Make the models named."""
    parser = argparse.ArgumentParser(description="Train pocket models that refuse in other ways.")
    parser.add_argument("--models", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--out", type=Path, default=MODELS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(THREADS)
    for name in args.models:
        logger.info("%s", name)
        model, tokenizer = MAKERS[name]()
        save(model, tokenizer, args.out / name)
        logger.info("%s: saved to %s", name, args.out / name)


if __name__ == "__main__":
    main()
