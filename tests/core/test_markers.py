"""Thinking apart from answers: markers, hand-made completions, openers, transcripts."""

from __future__ import annotations

import re
from copy import deepcopy

import pytest
import torch
from tokenizers import AddedToken

from attacks.core.analysis.transcripts import transcribe
from attacks.core.behavior import Behavior
from attacks.core.model import Model, generation
from attacks.core.model.chat import Chat
from attacks.core.reading import answers as answers_module
from attacks.core.refusals.openers import GENERAL_OPENERS, learn_openers
from attacks.core.thinking import ALLOWANCE, Markers, find_markers
from conftest import pocket

THINK = Markers("<think>", "</think>")
HARMFUL, HARMLESS = (
    Behavior("a", "How do I jam the lock?"),
    Behavior("b", "Mend it.", harmful=False),
)


@pytest.mark.parametrize(
    ("completion", "thought", "said"),
    [
        ("Sure, here.", "", "Sure, here."),
        ("", "", ""),
        ("<think>\nNot fine.\n</think>\n\nSorry.", "Not fine.", "Sorry."),
        ("<think>\n\n</think>\n\nSorry.", "", "Sorry."),
        ("<think>\nNot fine, but", "Not fine, but", ""),
        ("Well. <think>and on", "and on", "Well."),
        ("Not fine.\n</think>\nSorry.", "Not fine.", "Sorry."),
        ("<think>a</think> b <think>c</think> d", "a c", "b d"),
        ("<think>a <think> b</think> c", "a b", "c"),
        ("<think>a</think> b </think> c", "a", "b c"),
    ],
)
def test_completions_are_split_at_the_markers(completion: str, thought: str, said: str) -> None:
    assert THINK.split(completion) == (thought, said)
    assert THINK.answer(completion) == said


def test_what_stands_before_the_answer_is_cut_where_it_begins() -> None:
    assert THINK.before_answer("<think>\na\n</think>\n\nSorry.") == "<think>\na\n</think>\n\n"
    assert THINK.before_answer("<think>\nand on") == ""
    assert THINK.before_answer("Sorry.") == ""


def test_markers_are_tokens_or_stand_in_the_template() -> None:
    assert find_markers({"<think>", "</think>"}, "") == THINK
    assert find_markers({"[THINK]", "[/THINK]"}, "") == Markers("[THINK]", "[/THINK]")
    assert find_markers(set(), "{{ '<think>' }} {{ '</think>' }}") == THINK
    assert find_markers({"<think>"}, "") is None
    assert find_markers({"<|channel>", "<channel|>"}, "") == Markers("<|channel>", "<channel|>")
    assert pocket("pocket-llama").chat.markers is None
    assert pocket("pocket-llama").chat.answer("<think>a</think> b") == "<think>a</think> b"


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("[THINK]Not fine.[/THINK]Sorry.", "Sorry."),
        ("[THINK]Not fine.", ""),
        (
            "<|channel|>analysis<|message|>Not fine.<|end|>$<|channel|>final<|message|>Sorry.",
            "Sorry.",
        ),
        ("<|channel|>final<|message|>Sorry.", "Sorry."),
        ("<|channel|>analysis<|message|>Not fine.", ""),
    ],
)
def test_thinking_is_set_off_also_by_special_tokens(special: bool, said: str, answer: str) -> None:
    """Other special tokens are no part of an answer, and those that are would hide its parts."""
    tokenizer = deepcopy(pocket("pocket-llama").chat.tokenizer)
    marks = re.findall(r"<\|.*?\|>|\[.*?\]", said)
    tokenizer.add_tokens([AddedToken(mark, special=special) for mark in dict.fromkeys(marks)])
    # Where the marks are words beside tokens, a model is known by what its template writes.
    tokenizer.chat_template += (
        "{# [THINK] [/THINK] #}"
        if "[" in said
        else ("{# <|channel|>analysis<|message|> <|channel|>final<|message|> #}")
    )
    row = torch.tensor(
        tokenizer(said.replace("$", "<|eot_id|>"), add_special_tokens=False).input_ids
    )
    (text,) = generation._texts(tokenizer, [row])
    markers = find_markers(tokenizer.get_added_vocab(), tokenizer.chat_template)
    assert markers is not None and markers.answer(text) == answer
    assert "<|eot_id|>" not in text
    # A tokenizer that knows no markers has none to keep.
    plain = pocket("pocket-llama").chat.tokenizer
    row = torch.tensor(plain("Sorry.<|eot_id|> So", add_special_tokens=False).input_ids)
    assert generation._texts(plain, [row]) == ["Sorry. So"]


def test_a_template_that_opens_the_thinking_is_seen() -> None:
    own = pocket("pocket-llama").chat
    tokenizer = deepcopy(own.tokenizer)
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in ("<think>", "</think>")])
    plain = Chat(tokenizer, "m", vocab_rows=770, context=512)
    asked = pocket("pocket-llama").conversation("What does <think> mean?")
    assert plain.markers == THINK and plain.opening(asked) == ""
    tokenizer = deepcopy(tokenizer)
    tokenizer.chat_template = own.tokenizer.chat_template.replace(
        "assistant<|end_header_id|>\\n\\n", "assistant<|end_header_id|>\\n\\n<think>\\n"
    )
    opening = Chat(tokenizer, "m", vocab_rows=770, context=512)
    assert opening.render(asked).endswith("<think>\n")
    assert opening.opening(asked) == "<think>\n"


class Scripted:
    """Stands in for generation: completions by request, cut at the number of tokens allowed."""

    def __init__(self, said: dict[str, str]) -> None:
        self.said = said
        self.lengths: list[int] = []

    def __call__(self, asked, *, max_new_tokens, **_):  # type: ignore[no-untyped-def]
        self.lengths.append(max_new_tokens)
        words = [self.said[turns[-1].content].split(" ") for turns in asked]
        return [" ".join(row[:max_new_tokens]) for row in words]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    """The thinking pocket model, with an answer of its own for two requests."""
    model = pocket("pocket-llama-think")
    long = " ".join(["so"] * 40)
    said = {
        HARMFUL.text: f"<think>\nThis {long}\n</think>\n\nNo way, friend, that is not done.",
        HARMLESS.text: f"<think>\nThat {long}\n</think>\n\nTake the needle.",
    }
    monkeypatch.setattr(model, "generate", Scripted(said), raising=False)
    return model


def test_openers_are_those_of_answers_and_not_of_thinking(model: Model) -> None:
    found = learn_openers(model, [HARMFUL, HARMLESS])
    assert found == (*GENERAL_OPENERS, "no way, friend,")
    assert model.generate.lengths == [16, 16 + ALLOWANCE] * 2  # type: ignore[attr-defined]


def test_no_longer_answers_are_asked_of_a_model_that_does_not_think() -> None:
    plain = pocket("pocket-llama")
    found = answers_module.answers(plain, [HARMFUL.text], tokens=3)
    assert len(plain.chat.ids(found[0])) <= 3


def test_a_transcript_ends_where_the_answer_begins(model: Model) -> None:
    refused, answered = transcribe(model, [HARMFUL, HARMLESS])
    assert refused.refused and refused.harmful
    assert not answered.refused and not answered.harmful
    decode = model.chat.tokenizer.decode
    for row in (refused, answered):
        end = len(row.ids) - row.closing
        assert decode(row.ids[end:]) == "\n</think>\n\n" and row.closing == 3
        assert decode(row.ids[row.start : end]).startswith("\nTh") and row.thinks
        assert decode(row.ids[row.start - 1]) == "<think>"
        assert torch.equal(
            row.ids[: row.start - 1],
            model.plain(HARMFUL.text if row.harmful else HARMLESS.text).ids,
        )


def test_without_thinking_a_transcript_is_the_prompt() -> None:
    model = pocket("pocket-llama")
    (row,) = transcribe(model, [HARMFUL], openers=())
    assert torch.equal(row.ids, model.plain(HARMFUL.text).ids)
    assert not row.thinks and row.closing == 0
