"""Drawn answers: by the distribution that the model gives, each by its own random numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from attacks.core.interventions import DrawTokens
from benchmarks.boards.leaderboard import read_rows
from benchmarks.harness.runner import run
from benchmarks.inputs.suites import Suite
from benchmarks.storage.store import read_judgements, read_records
from conftest import POCKET, pocket


def suite(attack: str = "prefill", **fields: object) -> Suite:
    told = {"limit": 3, "max_new_tokens": 12, **fields}
    return Suite("test", ("pocket-llama",), (attack,), "pocket-test", **told)  # type: ignore[arg-type]


def answers(folder: Path) -> dict[str, tuple[str, ...]]:
    return {record.behavior_id: record.completions for record in read_records(folder)}


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.0, 1.0), (1.5, 0.7)])
def test_first_tokens_are_drawn_by_the_model_s_own_shares(temperature: float, top_p: float) -> None:
    model = pocket("pocket-llama")
    asked, count = model.conversation("Tell me about the lamp"), 2000
    rng = torch.Generator().manual_seed(0)
    draw = DrawTokens(torch.rand(count, 1, generator=rng, dtype=torch.float64), temperature, top_p)
    said = model.generate([asked] * count, max_new_tokens=1, interventions=(draw,))
    texts = [text.strip() for text in said]
    with torch.no_grad():
        logits = model.hf(model.plain("Tell me about the lamp").ids[None]).logits[0, -1].double()
    shares, ids = (logits / temperature).softmax(-1).sort(descending=True)
    # The nucleus: tokens from the likeliest on, until together they have top_p.
    size = int((shares.cumsum(-1) < top_p).sum()) + 1
    shares, ids = shares[:size] / shares[:size].sum(), ids[:size]
    tokenizer = AutoTokenizer.from_pretrained(POCKET / "pocket-llama")
    expected: dict[str, float] = {}
    for share, token in zip(shares.tolist(), ids.tolist(), strict=True):
        text = tokenizer.decode([token], skip_special_tokens=True).strip()
        expected[text] = expected.get(text, 0.0) + share
    assert set(texts) <= set(expected)
    found = {text: texts.count(text) / count for text in expected}
    distance = sum(abs(found[text] - expected[text]) for text in expected) / 2
    # Of 2,000 draws from so many tokens.
    assert distance < (0.03 if size < 50 else 0.15)


def test_a_draw_depends_on_its_index_and_on_nothing_else(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    assert run(suite(samples=2, temperature=1.5), few)
    assert run(suite(samples=2, temperature=1.5, limit=1), many)
    for behavior, texts in answers(many).items():
        assert answers(few)[behavior] == texts
        assert len(texts) == 3
    # Answers drawn at a high temperature are not all the greedy one.
    assert any(len(set(texts)) > 1 for texts in answers(few).values())


def test_greedy_answers_are_those_of_a_run_without_draws(tmp_path: Path) -> None:
    assert run(suite(samples=3), tmp_path / "drawn")
    assert run(suite(), tmp_path / "plain")
    plain = answers(tmp_path / "plain")
    assert {key: texts[:1] for key, texts in answers(tmp_path / "drawn").items()} == plain


def test_a_low_temperature_draws_the_greedy_answer(tmp_path: Path) -> None:
    assert run(suite(samples=2, temperature=1e-4), tmp_path)
    for texts in answers(tmp_path).values():
        assert len(set(texts)) == 1


def test_rates_are_those_of_the_drawn_answers(tmp_path: Path) -> None:
    assert run(suite(samples=4, temperature=2.0), tmp_path)
    (row,) = read_rows([tmp_path])
    drawn: dict[str, list[bool]] = {}
    said = {(j.key, j.completion_index): j.success for j in read_judgements(tmp_path)}
    for record in read_records(tmp_path):
        assert (record.samples, record.greedy, len(record.garbled)) == (4, 1, 5)
        drawn[record.key] = [bool(said[record.key, at]) for at in range(1, 5)]
    means = [sum(each) / 4 for each in drawn.values()]
    assert row.sample_asr == pytest.approx(sum(means) / len(means))
    assert row.sample_any == pytest.approx(sum(any(each) for each in drawn.values()) / len(drawn))
    assert row.asr == sum(bool(said[key, 0]) for key in drawn) / len(drawn)
