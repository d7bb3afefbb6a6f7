"""Answers of the model as it is: asked once, and the same as if asked alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attacks.core.interventions import SuppressTokens
from attacks.core.model import Model
from attacks.core.reading.answers import completions
from attacks.core.refusals.openers import learn_openers
from benchmarks.inputs.behaviors import load_behaviors
from conftest import POCKET


@pytest.fixture
def model() -> Model:
    """A model of its own, which nobody has asked yet."""
    return Model.load(str(POCKET / "pocket-llama"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many conversations each call of `Model.generate` was given."""
    counts: list[int] = []
    own = Model.generate

    def counted(self: Model, conversations: Any, **kwargs: Any) -> list[str]:
        counts.append(len(conversations))
        return own(self, conversations, **kwargs)

    monkeypatch.setattr(Model, "generate", counted)
    return counts


def test_what_is_known_is_not_asked_again(model: Model, asked: list[int]) -> None:
    texts = [row.text for row in load_behaviors("pocket-train")[:6]]
    first = completions(model, [*texts, texts[0]], tokens=5)
    again = completions(model, texts[::-1], tokens=5)
    assert sum(asked) == 6 and first == [*again[::-1], first[0]]
    longer = completions(model, texts, tokens=7)
    assert sum(asked) == 12 and all(map(str.startswith, longer, first))
    assert completions(model.changed([]), texts, tokens=5) == first[:6] and sum(asked) == 12


def test_a_single_text_is_asked_each_time(model: Model, asked: list[int]) -> None:
    """A search that goes on after a failure is to count what an undisturbed one counts."""
    text = load_behaviors("pocket-train")[0].text
    assert len({completions(model, [text], tokens=5)[0] for _ in range(2)}) == 1
    assert asked == [1, 1]


def test_a_second_fit_learns_the_same_without_asking(model: Model, asked: list[int]) -> None:
    train = load_behaviors("pocket-train")
    learned = learn_openers(model, train)
    asked.clear()
    assert learn_openers(model, train) == learned and not sum(asked)


def test_a_changed_model_is_asked_for_itself(model: Model, asked: list[int]) -> None:
    train = load_behaviors("pocket-train")
    texts = [row.text for row in train if row.harmful][:4]
    plain = completions(model, texts, tokens=8)
    asked.clear()
    said = torch.cat([model.plain(text).ids for text in plain])
    change = [SuppressTokens(said, bias=-100.0, steps=8)]
    assert completions(model, texts, tokens=8, interventions=change) != plain
    assert completions(model.changed(change), texts, tokens=8) != plain
    assert asked == [4, 4]
    assert completions(model, texts, tokens=8) == plain
