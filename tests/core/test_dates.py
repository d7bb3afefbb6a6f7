"""Chat templates that write today's date, or are no function of the conversation otherwise."""

from __future__ import annotations

import copy
from datetime import datetime
from pathlib import Path

import pytest

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.model import Model
from attacks.core.template import DATE
from conftest import tiny


def dated(form: str = "%d %b %Y %H:%M:%S.%f", day: str = DATE) -> Model:
    """A tiny model whose template writes the time, as Llama 3.2's writes the day."""
    return templated("{{ strftime_now('" + form + "') }}|", day)


def templated(start: str, day: str = DATE) -> Model:
    """A tiny model whose template starts so."""
    plain = tiny("llama")
    tokenizer = copy.deepcopy(plain.chat.tokenizer)
    tokenizer.chat_template = start + tokenizer.chat_template
    return Model(plain.hf, tokenizer, name="dated", revision="r", date=day)


def test_a_prompt_is_the_same_whenever_it_is_made() -> None:
    model = dated()
    one, other = (model.chat.render(model.conversation("a")) for _ in range(2))
    assert one == other and one.startswith("26 Jul 2024 00:00:00.000000|")
    assert model.plain(Behavior("b", "a").text).ids.tolist() == model.plain("a").ids.tolist()


@pytest.mark.parametrize("form", ["%d %b %Y", "%-d %B %Y", "%A, %Y-%m-%d", "no directive"])
def test_the_date_is_written_as_the_clock_would_write_it(form: str) -> None:
    text = dated(form, "2025-03-09").chat.render(dated().conversation("a"))
    assert text.startswith(datetime(2025, 3, 9).strftime(form) + "|")


def test_what_else_a_template_says_stays_as_it_is() -> None:
    plain = tiny("llama")
    asking = templated("\n{% if strftime_now is defined %}{% set day = 1 %}{% endif %}")
    request = plain.conversation("a")
    assert asking.chat.render(request) == "\n" + plain.chat.render(request)


def test_records_name_the_date_where_a_template_writes_one() -> None:
    assert dated().revision == "r dated 2024-07-26"
    assert dated(day="2025-03-09").revision == "r dated 2025-03-09"
    assert tiny("llama").revision == "", "its template asks for no date, and its keys stay"


def test_other_models_that_an_attack_uses_are_told_the_same_date(tmp_path: Path) -> None:
    model = dated(day="2025-03-09")
    model.hf.save_pretrained(tmp_path)
    model.chat.tokenizer.save_pretrained(tmp_path)
    other = model.companions.get(str(tmp_path))
    request = model.conversation("a")
    assert other.chat.render(request) == model.chat.render(request)


def test_a_template_that_draws_at_random_is_refused() -> None:
    with pytest.raises(BadInput, match="a different prompt each time"):
        templated("{{ range(100000) | random }}|")


def test_several_templates_without_a_default_are_one_line() -> None:
    plain = tiny("llama")
    tokenizer = copy.deepcopy(plain.chat.tokenizer)
    tokenizer.chat_template = {"tool_use": tokenizer.chat_template}
    with pytest.raises(BadInput, match="model 'named' has several chat templates and no default"):
        Model(plain.hf, tokenizer, name="named")


def test_a_date_that_is_none_is_named() -> None:
    with pytest.raises(BadInput, match=r"date '26\.7\.2024' is not a date; valid: YYYY-MM-DD"):
        dated(day="26.7.2024")
