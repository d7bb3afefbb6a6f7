"""The tasks of a race: requests, targets and first fillings that both sides tokenise alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from attacks.core.behavior import Behavior
from attacks.core.model import Model
from attacks.core.prompt import Prompt, conversation, suffixed
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.judges.reference import Reference
from benchmarks.race.racer import Run
from benchmarks.race.results import Pair
from benchmarks.race.shapes import Shape

_REQUEST = 30
_ANSWER = 64


def behaviors_of(shape: Shape, model: Model, rounds: int) -> list[Behavior]:
    """One for each round: held-out ones of the pocket world, or made-up words."""
    if shape.shipped:
        found = [b for b in load_behaviors("pocket-test") if b.harmful]
        return [found[at % len(found)] for at in range(rounds)]
    rng = Generator().manual_seed(0)
    words = _whole_words(model)

    def text(count: int) -> str:
        picks = words[torch.randint(len(words), (count,), generator=rng)]
        return str(model.chat.tokenizer.decode(picks))

    return [
        Behavior(f"random-{at}", text(_REQUEST).strip(), target=text(shape.target))
        for at in range(rounds)
    ]


def _whole_words(model: Model) -> Tensor:
    """Ids of the allowed tokens that are a word with the space before it."""
    allowed = model.chat.allowed.nonzero().squeeze(1)
    texts = model.chat.decode([[index] for index in allowed.tolist()])
    encoded = [encoding.ids for encoding in model.chat.encode(texts)]
    words = [
        text[:1] == " " and text[1:].isalpha() and len(text) > 2 and ids == [index]
        for text, ids, index in zip(texts, encoded, allowed.tolist(), strict=True)
    ]
    return allowed[torch.tensor(words)]


def task_of(
    shape: Shape, model: Model, behavior: Behavior, *, steps: int, seed: int
) -> tuple[dict[str, Any], Prompt]:
    """What a racer is told, and the prompt that it should make of it.

    The first filling consists of whole words, which both sides' tokenisers read alike, whatever
    stands beside them.
    """
    words = _whole_words(model)
    rng = Generator().manual_seed(seed)
    filling = words[torch.randint(len(words), (shape.slots,), generator=rng)]
    asked = suffixed(behavior, shape.slots)
    prompt = model.prompt(asked, target=behavior.affirmative, rng=rng, init=filling)
    content = model.chat.messages(prompt, filling.unsqueeze(0))[0][-1].content
    task = {
        "request": behavior.text,
        "target": behavior.affirmative,
        "filling": filling.tolist(),
        "initial": content[len(behavior.text) :],
        "slots": shape.slots,
        "width": shape.width,
        "topk": shape.topk,
        "batch": shape.batch,
        "steps": steps,
        "seed": seed,
    }
    return task, prompt


def judged(model: Model, behavior: Behavior, ours: Run, theirs: Run) -> Pair:
    """Both sides' suffixes after equal steps and equal seconds: one greedy answer each, judged."""
    pair = Pair(ours, theirs)
    judge = Reference()

    def succeeds(string: str | None) -> bool:
        if string is None:
            return False
        asked = conversation(behavior.text + string)
        answer = model.generate([asked], max_new_tokens=_ANSWER)[0]
        return bool(judge.judge(behavior, answer, openers=()).success)

    ends = (succeeds(ours.strings[-1]), succeeds(theirs.strings[-1]))
    cut = (succeeds(pair.string(ours)), succeeds(pair.string(theirs)))
    return Pair(ours, theirs, {"steps": ends, "seconds": cut})
