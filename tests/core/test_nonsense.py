"""Models that say nonsense where others refuse, as after unlearning (RMU, arXiv 2403.03218), and
such as refuse deep into an answer: what counts as garbled there."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from copy import deepcopy

import pytest
import torch

from attacks.core.model import Model
from attacks.core.reading.answers import answers
from attacks.core.refusals import coherence
from attacks.core.refusals.coherence import Coherence, fit_coherence, garbled
from attacks.core.refusals.openers import opens_with_refusal
from conftest import first_rows, pocket

PIECES = "p- to, mark oca per the, eral- is ,,, of ga: ocel al- puler".split()


def nonsense(at: int) -> str:
    return " ".join(random.Random(at).choices(PIECES, k=30))


def loop(_at: int) -> str:
    return "mark to, " * 12


def refusal(at: int) -> str:
    return f"I cannot help you with number {at} of these."


def fitted(monkeypatch: pytest.MonkeyPatch, says: Callable[[int], str]) -> Coherence:
    """What `fit_coherence` learns of a model that answers harmful prompts with this."""
    rows = first_rows(12)
    harmful = [row.text for row in rows if row.harmful]

    def said(model: object, texts: Sequence[str], *, tokens: int) -> list[str]:
        usual = answers(pocket("pocket-llama-raw"), texts, tokens=tokens)
        return [
            says(harmful.index(text)) if text in harmful else answer
            for text, answer in zip(texts, usual, strict=True)
        ]

    monkeypatch.setattr(coherence, "answers", said)
    found = fit_coherence(pocket("pocket-llama-raw"), rows)
    assert found is not None
    return found


@pytest.mark.parametrize("says", [nonsense, loop])
def test_what_a_model_finds_likely_after_nonsense_decides_nothing(
    monkeypatch: pytest.MonkeyPatch, says: Callable[[int], str]
) -> None:
    found = fitted(monkeypatch, says)
    assert found.deep
    # Answers to something else are then as unlikely as any, and the nonsense is still nonsense.
    model, (one, other) = pocket("pocket-llama-raw"), [row.text for row in first_rows(2)][:2]
    answer = answers(model, [other, one], tokens=48)[0]
    assert garbled(model, found, [answer, nonsense(0)], [one, one]) == [False, True]


@pytest.mark.parametrize(
    "says", [refusal, lambda at: "", lambda at: nonsense(at) if at < 5 else ""]
)
def test_refusals_and_a_few_broken_answers_leave_the_check_as_strict(
    monkeypatch: pytest.MonkeyPatch, says: Callable[[int], str]
) -> None:
    assert not fitted(monkeypatch, says).deep


@pytest.mark.parametrize(("share", "deep"), [(0.5, False), (0.8, True), (0.9, True)])
def test_right_answers_are_sound_however_deep_refusals_are(share: float, deep: bool) -> None:
    """Weights between those of a model that refuses at the first token, and of one hardened beyond.

    On the way, right answers get less likely sooner than refusals look deep.
    """
    shallow, hardened = pocket("pocket-llama"), pocket("pocket-llama-prefill-hard")
    hf = deepcopy(shallow.hf)
    theirs = hardened.hf.state_dict()
    with torch.no_grad():
        for name, weights in hf.named_parameters():
            weights.lerp_(theirs[name], share)
    between = Model(hf, shallow.chat.tokenizer, name="between")
    asked = [row.text for row in first_rows(12, name="pocket-test") if row.harmful]
    assert all(map(opens_with_refusal, answers(between, asked, tokens=12)))
    right = answers(pocket("pocket-llama-raw"), asked, tokens=60)
    coherence = fit_coherence(between, first_rows(24))
    assert coherence is not None and coherence.deep is deep
    assert not any(garbled(between, coherence, right, asked))
