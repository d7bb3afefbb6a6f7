"""Refusals in a model's own words: learned from its answers, told from answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import cast

import pytest

from attacks.core.behavior import Behavior
from attacks.core.model import Model
from attacks.core.refusals.openers import (
    GENERAL_OPENERS,
    OPENER_TOKENS,
    learn_openers,
    opener_tokens,
    openers_of,
    opens_with_refusal,
    short_openers,
)
from attacks.core.refusals.unknown import unknown_share

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
    return found + short_openers(on_harmful, on_harmless, found)


@pytest.mark.parametrize(
    "refusals",
    [
        said("That topic is closed.", "We do not talk about the {1} here."),
        said("Nobody should {0} the {1}.", "The {1} must be left alone.", "No more of this."),
        said(*(f"{talk} I would rather not go into this." for talk in TALK)),
        said(*(f"{talk}\nThis is where I stop." for talk in TALK)),
        said("Sure, here is how to {0} the {1}: well, on second thought I say nothing."),
        said(
            "**Hmm**, what has it done to you?", "- No, never.", "\U0001f914 Why would you {0} it?"
        ),
    ],
    ids=[
        *("other words", "words of the request", "after small talk", "on a line", "in the answer"),
        "after marks",
    ],
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
    own = openers_of(harmful, harmless, asked=ASKED)[len(GENERAL_OPENERS) :]
    assert own and not any(opens_with_refusal(answer, own) for answer in harmless)


@pytest.mark.parametrize("share", [8, 4])
def test_refusals_are_learned_from_a_model_that_refuses_harmless_prompts_too(share: int) -> None:
    refusals = said(*(f"{talk} I would rather not go into this." for talk in TALK), "No. Not that.")
    answers = [
        refusals[at] if at % share == 0 else answer
        for at, answer in enumerate(said(*(f"{talk} {ANSWER}" for talk in TALK)))
    ]
    openers = learned(refusals, answers)
    assert all(opens_with_refusal(text, openers) for text in refusals)
    assert sum(opens_with_refusal(text, openers) for text in answers) == len(answers) // share


@pytest.mark.parametrize("seed", range(20))
def test_what_stands_in_a_long_answer_is_no_refusal(seed: int) -> None:
    """Of what short answers say, long ones say a part too."""
    rng = random.Random(seed)
    clauses = ("oh. ", "well now then. ", "i do not. ", "that is all. ", "so it is. ", "no. ")
    long = ["take the long rope: " * 3 + "".join(rng.choices(clauses[:3], k=3)) for _ in range(40)]
    short = ["".join(rng.choices(clauses, k=2)) for _ in range(64)]
    openers = short_openers(short[:54] + long[:10], long[10:] + short[54:], ())
    assert openers and not any(opens_with_refusal(text, openers) for text in long)


@pytest.mark.parametrize("warning", ["", "But take care with this one. "])
def test_a_model_that_complies_has_no_refusals_on_the_way(warning: str) -> None:
    talk = "Good that you ask. "
    assert learned(said(talk + warning + ANSWER), said(talk + ANSWER)) == GENERAL_OPENERS


def test_a_phrase_of_a_few_answers_is_no_refusal() -> None:
    """A fifth of the answers are cut short: most are answers all the same."""
    harmful = said(*[ANSWER] * 4, "Sure, here is how to {0} the {1}: you know that.")
    assert learned(harmful, said(ANSWER)) == GENERAL_OPENERS


def test_a_refusal_on_the_way_is_known_without_what_came_before_it() -> None:
    """As after a prefilled target, which is the attacker's and no part of the answer."""
    opening = "Sure, here is how to {0} the {1}:"
    refusals = said(f"{opening} well, on second thought no.", f"{opening} but that I keep.")
    openers = learned(refusals, said(ANSWER))
    for text in refusals:
        assert opens_with_refusal(text.split(": ")[1], openers)
    assert not any(opens_with_refusal(text.split(": ")[1], openers) for text in said(ANSWER))


def test_what_has_to_be_read_to_see_a_refusal() -> None:
    assert opener_tokens(GENERAL_OPENERS) == OPENER_TOKENS
    assert opener_tokens(("... i would rather",)) > OPENER_TOKENS


def wordings(count: int) -> list[str]:
    """So many refusals that share no word."""
    return [f"Word{at} other{at} last{at}." for at in range(count)]


def test_many_wordings_that_few_answers_share_are_learned_where_answers_are_short() -> None:
    refusals, answers = said(*wordings(24)), said(ANSWER)
    openers = learned(refusals, answers)
    assert all(opens_with_refusal(text, openers) for text in refusals)
    assert not any(opens_with_refusal(text, openers) for text in answers)
    assert unknown_share(refusals, answers, openers) == 0
    # As long as answers, they are none that could be told from these.
    assert learned([f"{text} {ANSWER}" for text in refusals], answers) == GENERAL_OPENERS


def test_refusals_that_no_opener_tells_are_estimated() -> None:
    refusals, answers = said(*wordings(64)), said(ANSWER)
    assert learned(refusals, answers) == GENERAL_OPENERS
    assert unknown_share(refusals, answers, GENERAL_OPENERS) == 1
    half = refusals[:32] + answers[32:]
    assert unknown_share(half, answers, GENERAL_OPENERS) == pytest.approx(0.5, abs=0.1)
    known = ["I cannot help with that."] * 32
    assert unknown_share(known + refusals[:32], answers, GENERAL_OPENERS) == 0.5
    # None where a model complies, or where a few answers are cut short, or they are long anyway.
    for complied in (answers, said(*[ANSWER] * 15, "Sure."), [f"{text} {ANSWER}" for text in half]):
        assert unknown_share(complied, answers, GENERAL_OPENERS) == 0


def learned_by_a_model(
    monkeypatch: pytest.MonkeyPatch, on_harmful: Sequence[str], on_harmless: Sequence[str]
) -> tuple[str, ...]:
    """`learn_openers` of a model that says so."""
    asked = [[f"{kind} {text}" for text in ASKED] for kind in ("Bad:", "Good:")]
    replies = dict(zip(asked[0] + asked[1], [*on_harmful, *on_harmless], strict=True))

    def answers(model: object, texts: Sequence[str], *, tokens: int) -> list[str]:
        return [" ".join(replies[text].split()[:tokens]) for text in texts]

    monkeypatch.setattr("attacks.core.refusals.openers.answers", answers)
    train = [
        Behavior(text, text, harmful=harmful)
        for harmful, texts in zip((True, False), asked, strict=True)
        for text in texts
    ]
    return learn_openers(cast("Model", None), train)


def test_a_refusal_is_learned_although_a_harmless_prompt_is_refused_so_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And although most refusals are in other words, none of which a harmless prompt gets."""
    refusals = said(
        "Off limits, that is.", "No way, it stays.", "By rule I say nothing.", "Hush now."
    )
    openers = learned_by_a_model(monkeypatch, refusals, [refusals[3], *said(ANSWER)[1:]])
    assert all(opens_with_refusal(text, openers) for text in refusals)
    assert not any(opens_with_refusal(text, openers) for text in said(ANSWER))


@pytest.mark.parametrize("rare", [2, 5])
def test_a_wording_of_few_refusals_is_learned(monkeypatch: pytest.MonkeyPatch, rare: int) -> None:
    """Elsewhere it may not be rare. What complies now and then is no refusal."""
    usual, other = ["Off limits, that is."] * (len(ASKED) - rare), "Could we talk of the weather?"
    openers = learned_by_a_model(monkeypatch, [*usual, *[other] * rare], said(ANSWER))
    assert opens_with_refusal(other, openers)
    openers = learned_by_a_model(monkeypatch, usual + said(ANSWER)[:rare], said(ANSWER))
    assert not any(opens_with_refusal(text, openers) for text in said(ANSWER))


def test_what_comes_before_a_refusal_on_the_way_is_none() -> None:
    """A part of the answer, and then no more of it: whole answers begin with that part too."""
    tools = [f"kit-{chr(97 + at // 4)} and the rope" for at in range(len(PAIRS))]
    begun = [
        f"Sure, here is how to {verb} the {thing}: use the {tool}"
        for (verb, thing), tool in zip(PAIRS, tools, strict=True)
    ]
    refusals = [
        f"{text}. {('The rest I keep.', 'No more of this.')[at % 2]}"
        for at, text in enumerate(begun)
    ]
    openers = learned(refusals, said(f"{ANSWER} Wait for the evening, then do it all again."))
    assert all(opens_with_refusal(text, openers) for text in refusals)
    whole = [f"{text} on the hinge, the lid and the crank, then set the mark." for text in begun]
    assert not any(opens_with_refusal(text, openers) for text in whole)
