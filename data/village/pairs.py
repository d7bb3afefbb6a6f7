"""Teach a real chat model what requests intend, not what they speak of: ``data/village/pairs.py``.

As ``train.py``, from the same base, with the same refusals and answers, and these differences:

- `pairs.txt` holds pairs of requests that differ in their intention and in little else. Both
  halves of a pair are learned in the same step.
- The first token of an answer, which decides whether it is a refusal, counts four times.
- A second course learns with a margin: the logits of the tokens that refusals open with are raised
  while it learns (logit adjustment, arXiv 2007.07314), and no more raised once it has learned. It
  undoes that the model refuses new kinds of requests too readily after the first.

Its model is `village-smollm2-pairs`. A step takes 11 s of two cores without AVX-512.
`--steps` bounds each of the two courses.
"""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# This folder first: the pocket models have a `train` too.
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parent / "pocket")]

import train
from prompts import REFUSALS, everyday, some
from train import begin, example, harmful_and_near, mixed, own_answers
from training import descend

PAIRS = HERE / "pairs.txt"
NAME = "village-smollm2-pairs"
SEED = 0
#: Steps, rate and margin (in nats) of each course.
COURSES = ((240, 3e-4, 0.0), (150, 2e-4, 1.5))
#: Requests of each kind in a step, and pairs.
HARMFUL, EVERYDAY, NEAR, PAIRED = 5, 2, 5, 3
#: How often the first token of an answer counts.
FIRST = 4.0
#: Tokens of the base's answers to learn.
ANSWER = 16
DROPOUT, DECAY = 0.1, 0.05

_ALTERNATIVES = re.compile(r"\{([^{}|]*)\|([^{}|]*)\}")


def main() -> None:
    """Train, and save the adapter in half precision."""
    options, base = begin(__doc__, NAME, steps=sum(steps for steps, *_ in COURSES), seed=SEED)
    harmful, spoken_of = harmful_and_near()
    draw = random.Random(SEED)
    refused = [example(base, text, pick) for text, pick in harmful]
    near = own_answers(base, spoken_of, ANSWER)
    ordinary = own_answers(base, some(everyday(held_out=False), 240, SEED), ANSWER)
    written = pairs()
    new = set(train.unlike_tested([half for pair in written for half in pair]))
    meant, harmless = zip(*(pair for pair in written if new.issuperset(pair)), strict=True)
    paired = list(
        zip(
            [example(base, text, draw.choice(REFUSALS)) for text in meant],
            own_answers(base, list(harmless), ANSWER),
            strict=True,
        )
    )
    tuned = train.with_adapter(base, DROPOUT)
    alone = mixed((refused, HARMFUL), (ordinary, EVERYDAY), (near, NEAR))
    batches = (
        [*rows, *(half for pair in twos for half in pair)]
        for rows, twos in zip(alone, mixed((paired, PAIRED)), strict=True)
    )
    words = base.chat.tokenizer
    openers = sorted({words(text, add_special_tokens=False)["input_ids"][0] for text in REFUSALS})
    for steps, rate, margin in COURSES:
        losses = (
            train.answer_loss(tuned, batch, first=FIRST, openers=openers, margin=margin)
            for batch in batches
        )
        descend(tuned, losses, steps=min(steps, options.steps), lr=rate, weight_decay=DECAY)
    train.save(tuned, options.out)


def pairs() -> list[tuple[str, str]]:
    """Each line of `pairs.txt` as a harmful and a harmless request."""
    lines = [line.strip() for line in PAIRS.read_text("utf-8").splitlines()]
    return [
        (_ALTERNATIVES.sub(r"\1", line), _ALTERNATIVES.sub(r"\2", line))
        for line in lines
        if line and not line.startswith("#")
    ]


if __name__ == "__main__":
    main()
