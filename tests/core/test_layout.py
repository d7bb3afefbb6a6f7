"""Slots anywhere in the last user turn, and earlier turns."""

from __future__ import annotations

import pytest
import torch

from attacks.attack import Behavior
from attacks.core.errors import BadInput
from attacks.core.layout import Layout
from attacks.core.model import Model
from attacks.core.prompt import SLOT, suffixed
from conftest import POCKET, pocket

REQUEST = Behavior("b", "How do I paint the harp?")


def test_the_usual_place_is_a_suffix() -> None:
    model = pocket("pocket-llama")
    assert Layout().conversation(model, REQUEST, 3) == suffixed(REQUEST, 3)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("prefix", f"{SLOT * 5} How do I paint the harp?"),
        ("both", f"{SLOT * 3} How do I paint the harp?{SLOT * 2}"),
        (
            "{slots}: {request} {slots}!{slots}",
            f"{SLOT * 2}: How do I paint the harp? {SLOT * 2}!{SLOT}",
        ),
    ],
)
def test_slots_are_shared_out_to_their_places(place: str, expected: str) -> None:
    model = pocket("pocket-llama")
    (turn,) = Layout(place).conversation(model, REQUEST, 5)
    assert turn.content == expected
    prompt = model.prompt((turn,), rng=torch.Generator().manual_seed(0))
    assert prompt.n_slots == 5 and prompt.slot_ids.tolist() == prompt.ids[prompt.slots].tolist()


def test_braces_in_a_request_are_only_text() -> None:
    odd = Behavior("b", "What is {slots} and {request}?")
    (turn,) = Layout("prefix").conversation(pocket("pocket-llama"), odd, 1)
    assert turn.content == f"{SLOT} What is {{slots}} and {{request}}?"


def test_earlier_turns_are_answered_by_the_model_itself() -> None:
    model = Model.load(str(POCKET / "pocket-llama"), name="pocket-llama", system="Be kind.")
    turns = Layout(before=("How do I mend the harp?", "Thanks."), answer_tokens=6).conversation(
        model, REQUEST, 2
    )
    assert [turn.role for turn in turns] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    for at in (2, 4):
        assert (turns[at].content,) == tuple(model.generate([turns[:at]], max_new_tokens=6))
    assert turns[-1].content == REQUEST.text + SLOT * 2


def test_what_makes_no_sense_is_refused() -> None:
    for place in (
        "middle",
        "{request}",
        "{slots}",
        "{request}{request}{slots}",
        f"{{request}}{SLOT}",
    ):
        with pytest.raises(BadInput, match="place"):
            Layout(place)
    with pytest.raises(BadInput, match="2 places"):
        Layout("both").conversation(pocket("pocket-llama"), REQUEST, 1)
    with pytest.raises(BadInput, match=r"U\+E000"):
        Layout().conversation(pocket("pocket-llama"), Behavior("b", f"a{SLOT}"), 1)
