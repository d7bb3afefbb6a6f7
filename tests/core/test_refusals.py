"""Refusals in a model's own words: learned from its answers, told from answers."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from attacks.core.refusals.openers import (
    GENERAL_OPENERS,
    OPENER_TOKENS,
    later_openers,
    opener_tokens,
    openers_of,
    opens_with_refusal,
)

VERBS = ("sabotage", "flood", "spoil", "break", "jam", "loosen", "stain", "bend")
THINGS = ("lantern", "garden gate", "old water wheel", "bell", "kiln", "ferry", "loom", "mill")
PAIRS = [(verb, thing) for verb in VERBS for thing in THINGS]
ASKED = [f"How do I {verb} the {thing}?" for verb, thing in PAIRS]
TALK = ("What a good thing to ask.", "Oh, the {1} again!", "That is a nice question, thank you.")
ANSWER = "Sure, here is how to {0} the {1}: use the long rope on the hinge, then set the mark."


def said(*texts: str) -> list[str]:
    """One of the texts to each request, in turn."""
    return [texts[at % len(texts)].format(*pair) for at, pair in enumerate(PAIRS)]


def learned(on_harmful: Sequence[str], on_harmless: Sequence[str]) -> tuple[str, ...]:
    """As `learn_openers` does it, from answers that are there."""
    found = openers_of(on_harmful, on_harmless, asked=ASKED)
    return found + later_openers(on_harmful, on_harmless, found)


@pytest.mark.parametrize(
    "refusals",
    [
        said("That topic is closed.", "We do not talk about the {1} here."),
        said("Nobody should {0} the {1}.", "The {1} must be left alone.", "No more of this."),
        said(*(f"{talk} I would rather not go into this." for talk in TALK)),
        said(*(f"{talk}\nThis is where I stop." for talk in TALK)),
        said("Sure, here is how to {0} the {1}: well, on second thought I say nothing."),
    ],
    ids=["other words", "words of the request", "after small talk", "on a line", "in the answer"],
)
def test_refusals_are_learned_however_they_are_put(refusals: list[str]) -> None:
    talk = refusals[0].split(".")[0] + ". " if refusals[0].startswith("What") else ""
    answers = said(talk + ANSWER)
    openers = learned(refusals, answers)
    assert all(opens_with_refusal(text, openers) for text in refusals)
    assert not any(opens_with_refusal(text, openers) for text in answers)
    # And in answers to others than those that it was learned from.
    other = refusals[0].replace("lantern", "brass kettle").replace("sabotage", "dent")
    assert opens_with_refusal(other, openers)


@pytest.mark.parametrize("seed", range(20))
def test_no_answer_to_a_harmless_prompt_is_a_refusal_in_learned_words(seed: int) -> None:
    """Few texts of few words, so that openings are frequent, and begin one another."""
    rng = random.Random(seed)
    words = ("i", "am", "a", "able", "a bell", "am. i", "not: i", "jam")
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(12)]
    harmful, harmless = (rng.choices(texts[at : at + 8], k=len(ASKED)) for at in (0, 4))
    own = learned(harmful, harmless)[len(GENERAL_OPENERS) :]
    assert own and not any(opens_with_refusal(answer, own) for answer in harmless)


@pytest.mark.parametrize("warning", ["", "But take care with this one. "])
def test_a_model_that_complies_has_no_refusals_on_the_way(warning: str) -> None:
    talk = "Good that you ask. "
    assert learned(said(talk + warning + ANSWER), said(talk + ANSWER)) == GENERAL_OPENERS


def test_a_phrase_of_a_few_answers_is_no_refusal() -> None:
    """A fifth of the answers are cut short: most are answers all the same."""
    harmful = said(*[ANSWER] * 4, "Sure, here is how to {0} the {1}: you know that.")
    assert learned(harmful, said(ANSWER)) == GENERAL_OPENERS


def test_what_has_to_be_read_to_see_a_refusal() -> None:
    assert opener_tokens(GENERAL_OPENERS) == OPENER_TOKENS
    assert opener_tokens(("... i would rather",)) > OPENER_TOKENS
