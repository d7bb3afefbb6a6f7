"""Chat templates that write today's date."""

from __future__ import annotations

import copy

from attacks.core.behavior import Behavior
from attacks.core.model import Model
from conftest import tiny


def dated() -> Model:
    """A tiny model whose template writes the time, as Llama 3.2's writes the day."""
    plain = tiny("llama")
    tokenizer = copy.deepcopy(plain.chat.tokenizer)
    tokenizer.chat_template = (
        "{{ strftime_now('%d %b %Y %H:%M:%S.%f') }} " + tokenizer.chat_template
    )
    return Model(plain.hf, tokenizer, name="dated", revision="r")


def test_a_prompt_is_the_same_whenever_it_is_made() -> None:
    model = dated()
    one, other = (model.chat.render(model.conversation("a")) for _ in range(2))
    assert one == other and one.startswith("26 Jul 2024 00:00:00.000000 ")
    assert model.plain(Behavior("b", "a").text).ids.tolist() == model.plain("a").ids.tolist()


def test_records_name_the_date_where_a_template_writes_one() -> None:
    assert dated().revision == "r dated 2024-07-26"
    assert tiny("llama").revision == "", "its template asks for no date, and its keys stay"
