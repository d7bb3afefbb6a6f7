"""Models that say nonsense where others refuse, as after unlearning (RMU, arXiv 2403.03218)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from attacks.core.reading.answers import answers
from attacks.core.refusals import coherence
from attacks.core.refusals.coherence import Coherence, fit_coherence, garbled
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
