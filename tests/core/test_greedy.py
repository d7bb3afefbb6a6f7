"""Greedy decoding is greedy, whatever a checkpoint's `generation_config.json` says."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from attacks.core.model import Model, PlainModel
from attacks.core.model.reader import Reader
from attacks.core.prompt import conversation
from attacks.core.template import turn_end
from conftest import POCKET

SOURCE = POCKET / "pocket-llama"
#: Refused and answered at length.
ASKED = ("How do I paint the harp?", "Please tell me, how do I mend the old kite?")
TOKENS = 24
#: Their first tokens, and what one answer each has in its middle: "." and " cru".
FIRST, MIDDLE = [46, 453], [19, 554]
OWN_ENDS = (5, 1)

SETTINGS: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "temperature": 9.0, "top_p": 0.99, "top_k": 0},
    "penalties": {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1},
    "suppressed": {"suppress_tokens": FIRST, "begin_suppress_tokens": MIDDLE},
    "biased": {"bad_words_ids": [[46]], "sequence_bias": [[[453], -100.0]]},
    "lengths": {"min_new_tokens": TOKENS, "forced_eos_token_id": 300, "stop_strings": ["here"]},
    "beams": {"num_beams": 4, "length_penalty": -9.0, "early_stopping": True},
}


@cache
def parts() -> tuple[Any, Any]:
    """The tokenizer and the model, as transformers load them."""
    return AutoTokenizer.from_pretrained(SOURCE), AutoModelForCausalLM.from_pretrained(SOURCE)


def asked_ids(text: str) -> torch.Tensor:
    shown = parts()[0].apply_chat_template(
        [{"role": "user", "content": text}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    ids: torch.Tensor = shown["input_ids"]
    return ids


@cache
@torch.no_grad()
def by_argmax(text: str, ends: tuple[int, ...]) -> str:
    """The answer by a loop of argmax over whole forward passes, without its end token."""
    tokenizer, hf = parts()
    ids, said = asked_ids(text), []
    for _ in range(TOKENS):
        token = int(
            hf(torch.cat([ids, torch.tensor([said], dtype=ids.dtype)], 1)).logits[0, -1].argmax()
        )
        if token in ends:
            break
        said.append(token)
    return str(tokenizer.decode(said, skip_special_tokens=True)).strip()


def checkpoint(folder: Path, settings: dict[str, Any], **tokenizer: Any) -> Path:
    """The pocket model with other generation settings; of the tokenizer's, None takes one away."""
    folder.mkdir()
    for path in SOURCE.iterdir():
        (folder / path.name).symlink_to(path)
    rewritten = {"generation_config.json": settings, "tokenizer_config.json": tokenizer}
    for name, fields in rewritten.items():
        known = json.loads((SOURCE / name).read_text()) | fields
        (folder / name).unlink()
        kept = {key: value for key, value in known.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))
    return folder


def answers(folder: Path) -> dict[str, list[str]]:
    """What each of the three that answer says to both requests in one batch, or one by one."""
    told: dict[str, Any] = {"name": "m", "device": "cpu", "dtype": "float32"}
    asked = [conversation(text) for text in ASKED]
    reader = Reader(str(folder), labels=False, device="cpu", dtype="float32")
    return {
        "model": list(Model.load(str(folder), **told).generate(asked, max_new_tokens=TOKENS)),
        "plain": PlainModel(str(folder), **told).answers(asked, max_new_tokens=TOKENS),
        "judge": [str(reader.write(reader.chat(text), tokens=TOKENS)) for text in ASKED],
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_greedy_is_argmax_whatever_the_checkpoint_asks_for(name: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", {"eos_token_id": OWN_ENDS, **SETTINGS[name]})
    expected = [by_argmax(text, OWN_ENDS) for text in ASKED]
    assert answers(folder) == dict.fromkeys(("model", "plain", "judge"), expected)
    # And `generate` would have done as it asks.
    tokenizer, hf = (of.from_pretrained(folder) for of in (AutoTokenizer, AutoModelForCausalLM))
    torch.manual_seed(0)
    for text, greedy in zip(ASKED, expected, strict=True):
        ids = asked_ids(text)
        out = hf.generate(ids, tokenizer=tokenizer, max_new_tokens=TOKENS)[0, ids.shape[1] :]
        assert tokenizer.decode(out, skip_special_tokens=True).strip() != greedy


@pytest.mark.parametrize("tokenizer", [{}, {"pad_token": None}, {"eos_token": None}])
def test_every_end_token_ends_an_answer(tokenizer: dict[str, Any], tmp_path: Path) -> None:
    """Also such as are no special tokens, and where rows that have ended are filled up with one."""
    ends = (*MIDDLE, *OWN_ENDS)
    folder = checkpoint(tmp_path / "m", {"eos_token_id": ends}, **tokenizer)
    expected = [by_argmax(text, ends) for text in ASKED]
    assert expected[0].endswith("that") and expected[1].endswith("use the")
    assert answers(folder) == dict.fromkeys(("model", "plain", "judge"), expected)
    model = Model.load(str(folder))
    said = model.generate([conversation(text) for text in ASKED], max_new_tokens=TOKENS)
    assert [one.ended for one in said] == [True, True]


def test_padding_may_be_a_token_without_an_embedding(tmp_path: Path) -> None:
    """As where a tokenizer was given one for fine-tuning and the model was left as it was."""
    folder = checkpoint(tmp_path / "m", {"eos_token_id": OWN_ENDS})
    tokenizer = AutoTokenizer.from_pretrained(SOURCE)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == parts()[1].get_input_embeddings().num_embeddings
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    tokenizer.save_pretrained(folder)
    expected = [by_argmax(text, OWN_ENDS) for text in ASKED]
    assert answers(folder) == dict.fromkeys(("model", "plain", "judge"), expected)


def test_an_answer_ends_where_the_template_ends_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the checkpoint names another end only: what comes then is no answer any more."""
    folder = checkpoint(tmp_path / "m", {"eos_token_id": 1}, eos_token="<|end_of_text|>")
    expected = [by_argmax(text, OWN_ENDS) for text in ASKED]
    assert expected != [by_argmax(text, (1,)) for text in ASKED]
    assert answers(folder) == dict.fromkeys(("model", "plain", "judge"), expected)
    assert "ends answers with '<|eot_id|>'" in caplog.text
    caplog.clear()
    answers(checkpoint(tmp_path / "own", {"eos_token_id": OWN_ENDS}))
    assert not caplog.messages


def test_text_that_a_template_writes_after_answers_is_no_end_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SOURCE)
    assert turn_end(tokenizer) == ("<|eot_id|>", [5])
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }} so\n{% endfor %}"
    assert turn_end(tokenizer)[0] == ""
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert turn_end(tokenizer) == ("", [])
