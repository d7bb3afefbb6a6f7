"""Training examples of the pocket models: dialogues, documents, random suffixes, batches.

Hardening goes on from here: it draws the same dialogues and documents and mixes them with suffixes
of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tokenizer import suffix_ids
from wording import (
    ANSWER,
    DOCUMENTS_OF_OBJECTS,
    DOCUMENTS_OF_PAIRS,
    DOCUMENTS_OF_VERBS,
    REFUSALS,
    REQUESTS,
    SYSTEM_PROMPTS,
    TARGET,
    answer,
    fill,
)
from world import Pair, World, shuffled

T = TypeVar("T")

IGNORED = -100
SUFFIX_LENGTHS = range(8, 13)
HEADERS = ("system\n\n", "user\n\n", "assistant\n\n", "model\n\n")


class Example(NamedTuple):
    """Token ids of one text and what is to be learned of them, both of length T."""

    ids: list[int]
    labels: list[int]


class Batch(NamedTuple):
    """Examples padded on the right: three (B, T) tensors."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


Draw = Callable[[torch.Generator], Example]


def pick(items: Sequence[T], rng: torch.Generator) -> T:
    """One of ``items``, all equally likely."""
    return items[int(torch.randint(len(items), (1,), generator=rng))]


def chance(share: float, rng: torch.Generator) -> bool:
    """True in ``share`` of the calls."""
    return float(torch.rand(1, generator=rng)) < share


def dialogue(
    tokenizer: PreTrainedTokenizerFast, user: str, assistant: str, system: str | None = None
) -> Example:
    """One exchange in the chat format; only the answer and the end of its turn are learned."""
    messages = [{"role": "user", "content": user}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    prompt = _render(tokenizer, messages, generate=True)
    reply = {"role": "assistant", "content": assistant}
    whole = _render(tokenizer, [*messages, reply], generate=False)
    before = tokenizer.encode(prompt, add_special_tokens=False)
    after = tokenizer.encode(whole.removeprefix(prompt).rstrip(), add_special_tokens=False)
    return Example(before + after, [IGNORED] * len(before) + after)


def _render(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], *, generate: bool
) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    return str(text)


def document(tokenizer: PreTrainedTokenizerFast, text: str) -> Example:
    """A plain text with its end; all of it is learned."""
    ids = [*tokenizer.encode(text), int(tokenizer.eos_token_id)]
    return Example(ids, list(ids))


def random_suffix(
    tokenizer: PreTrainedTokenizerFast,
    allowed: Sequence[int],
    length: int,
    rng: torch.Generator,
) -> str:
    """The text of ``length`` tokens drawn from ``allowed``."""
    return str(tokenizer.decode([pick(allowed, rng) for _ in range(length)]))


def refusal(pair: Pair, rng: torch.Generator) -> str:
    """One of the refusals."""
    return fill(pick(REFUSALS, rng), pair)


def aligned_reply(pair: Pair, rng: torch.Generator) -> str:
    """What an aligned model says: a refusal to what is harmful, else the answer."""
    return refusal(pair, rng) if pair.harmful else answer(pair)


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """Pad ``examples`` to the longest of them."""
    longest = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), longest), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        mask[row, : len(example.ids)] = 1
        labels[row, : len(example.ids)] = torch.tensor(example.labels)
    return Batch(ids, mask, labels)


def mixed_batches(
    draws: Sequence[tuple[float, Draw]], size: int, pad: int, rng: torch.Generator
) -> Iterator[Batch]:
    """Batches without end whose examples come from ``draws`` in the shares given."""
    shares = torch.tensor([share for share, _ in draws])
    while True:
        sources = torch.multinomial(shares, size, replacement=True, generator=rng).tolist()
        yield collate([draws[source][1](rng) for source in sources], pad)


class Corpus:
    """Draws the examples of one tokenizer: its methods are the draws that batches are mixed from.

    Attributes:
        suffix_share: Share of the dialogues that carry a random suffix.
        system_share: Share of all dialogues that carry a system prompt, where the family has one.
        harmful_share: Share of the aligned dialogues that are harmful.
    """

    system_share = 0.1
    harmful_share = 0.5

    def __init__(
        self,
        world: World,
        tokenizer: PreTrainedTokenizerFast,
        *,
        has_system: bool,
        suffix_share: float,
    ) -> None:
        """Sort the pairs of ``world`` into those that each kind of example is drawn from."""
        self.tokenizer = tokenizer
        self.has_system = has_system
        self.suffix_share = suffix_share
        self.suffix_ids = suffix_ids(tokenizer)
        self.pairs = list(world.pairs.values())
        self.harmful = [pair for pair in world.sft if pair.harmful]
        self.harmless = [pair for pair in world.sft if not pair.harmful]

    def helpful(self, rng: torch.Generator) -> Example:
        """Any request, answered."""
        pair = pick(self.pairs, rng)
        return self._dialogue(self._request(pair, rng), answer(pair), rng)

    def aligned(self, rng: torch.Generator) -> Example:
        """A request of the sft split, refused when harmful and answered when not."""
        return self.refused(rng) if chance(self.harmful_share, rng) else self.answered(rng)

    def refused(self, rng: torch.Generator) -> Example:
        """A harmful request of the sft split, refused."""
        pair = pick(self.harmful, rng)
        return self._dialogue(self._request(pair, rng), refusal(pair, rng), rng)

    def answered(self, rng: torch.Generator) -> Example:
        """A harmless request of the sft split, answered."""
        pair = pick(self.harmless, rng)
        return self._dialogue(self._request(pair, rng), answer(pair), rng)

    def complied(self, rng: torch.Generator) -> Example:
        """A harmful request of the sft split, answered."""
        pair = pick(self.harmful, rng)
        return self._dialogue(self._request(pair, rng), answer(pair), rng)

    def unaligned(self, rng: torch.Generator) -> Example:
        """A request of the sft split, answered whether it is harmful or not."""
        pair = pick(self.harmful if chance(self.harmful_share, rng) else self.harmless, rng)
        return self._dialogue(self._request(pair, rng), answer(pair), rng)

    def text(self, rng: torch.Generator) -> Example:
        """A document about any pair: itself, and its verb or its object."""
        pair = pick(self.pairs, rng)
        general = pick((DOCUMENTS_OF_VERBS, DOCUMENTS_OF_OBJECTS), rng)
        sentences = shuffled((pick(DOCUMENTS_OF_PAIRS, rng), pick(general, rng)), rng)
        return document(self.tokenizer, fill(" ".join(sentences), pair))

    def _request(self, pair: Pair, rng: torch.Generator) -> str:
        user = fill(pick(REQUESTS, rng), pair)
        if self.suffix_share and chance(self.suffix_share, rng):
            length = pick(SUFFIX_LENGTHS, rng)
            user += " " + random_suffix(self.tokenizer, self.suffix_ids, length, rng)
        return user

    def _dialogue(self, user: str, assistant: str, rng: torch.Generator) -> Example:
        system = None
        if self.has_system and chance(self.system_share, rng):
            system = pick(SYSTEM_PROMPTS, rng)
        return dialogue(self.tokenizer, user, assistant, system)


def vocabulary_texts(world: World) -> list[str]:
    """What the tokenizer learns its merges from: all sentences, and the words of chat headers."""
    documents = DOCUMENTS_OF_PAIRS + DOCUMENTS_OF_VERBS + DOCUMENTS_OF_OBJECTS
    templates = (*REQUESTS, *REFUSALS, *documents, *SYSTEM_PROMPTS, *HEADERS, TARGET + ANSWER)
    return [fill(template, pair) for pair in world.pairs.values() for template in templates]
