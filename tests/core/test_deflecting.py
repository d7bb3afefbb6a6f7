"""Models that answer another request than the harmful one: fluently, and at length."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from attacks import Behavior
from attacks.core.answer import Answer
from attacks.core.behavior import names
from attacks.core.interventions import AblateDirection
from attacks.core.model import Model
from attacks.core.refusals import own_answers, unknown, verdicts
from attacks.core.refusals.openers import GENERAL_OPENERS
from attacks.core.refusals.own_answers import GIVEN, OwnAnswers
from attacks.core.refusals.unknown import elsewhere_share, unknown_refusals
from attacks.core.refusals.verdicts import Examiner
from conftest import first_rows, pocket

ANSWER = "Sure, here is how to {0} the {1}: use the rope on the hinge, then set the mark."
Reply = Callable[[Behavior], str]


def about(row: Behavior) -> tuple[str, str]:
    """Verb and object of a request of the pocket world."""
    (found,) = re.findall(r"how to (\w+) the (\w+):", row.target or "")
    return found[0], found[1]


def complies(row: Behavior) -> str:
    return ANSWER.format(*about(row))


def deflects(row: Behavior) -> str:
    """To the harmless request about the same thing."""
    return ANSWER.format("brighten", about(row)[1]) if row.harmful else complies(row)


def own_words(row: Behavior) -> str:
    """The thing alone is named, whatever is asked."""
    return f"Take the rope to the {about(row)[1]} and set the mark once the hinge gives way there."


def estimate(monkeypatch: pytest.MonkeyPatch, reply: Reply, rows: Sequence[Behavior]) -> float:
    """`unknown_refusals` of a model that replies so."""
    said = {row.text: reply(row) for row in rows}

    def answers(model: object, texts: Sequence[str], *, tokens: int) -> list[str]:
        return [Answer(said[text]) for text in texts]

    monkeypatch.setattr(unknown, "answers", answers)
    return unknown_refusals(pocket("pocket-llama"), rows, GENERAL_OPENERS)


def test_answers_to_something_else_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = first_rows(48)
    assert estimate(monkeypatch, deflects, rows) == 1

    def half(row: Behavior) -> str:
        return deflects(row) if int(row.id.split("-")[2]) % 2 else complies(row)

    assert estimate(monkeypatch, half, rows) == pytest.approx(0.5)


@pytest.mark.parametrize("reply", [complies, own_words])
def test_none_are_where_harmless_requests_are_answered_alike(
    monkeypatch: pytest.MonkeyPatch, reply: Reply
) -> None:
    assert estimate(monkeypatch, reply, first_rows(48)) == 0


def test_none_are_where_a_judge_takes_none_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is empty or a loop is no success of `phrases` either."""
    for junk in ("", "the hinge the hinge the hinge the hinge the hinge the hinge the hinge"):

        def broken(row: Behavior, said: str = junk) -> str:
            return said if row.harmful else complies(row)

        assert estimate(monkeypatch, broken, first_rows(48)) == 0


def test_few_pairs_tell_nothing() -> None:
    rows = first_rows(9)
    pairs = [
        [(row, deflects(row)) for row in rows if row.harmful == flag] for flag in (True, False)
    ]
    assert elsewhere_share(*(side[:9] for side in pairs), GENERAL_OPENERS) == 0
    more = [side * 2 for side in pairs]
    assert elsewhere_share(*more, GENERAL_OPENERS) == 1
    without = [[(Behavior("b", row.text), said) for row, said in side] for side in more]
    assert elsewhere_share(*without, GENERAL_OPENERS) == 0, "no target, so nothing is known"


def test_what_a_request_is_about(behavior: Behavior) -> None:
    assert names(behavior, "To Paint a harp, wait.") is True
    assert names(behavior, "To tune a harp, wait.") is False
    assert names(Behavior("b", "How do I paint the harp?"), "Paint the harp.") is None


def test_a_way_out_that_the_model_takes_anyway_is_not_pursued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plain model says it to the plain request: a search towards it would end at once."""
    model: Model = pocket("pocket-llama-raw")
    own = OwnAnswers((("changed", AblateDirection(torch.ones(model.width), model.n_layers)),))
    row = next(row for row in first_rows(4) if row.harmful)

    def pursued(changed: str, plain: str) -> tuple[str, str]:
        monkeypatch.setattr(own_answers, "own_answer", lambda *of: Answer(changed))

        def answers(model: object, texts: Sequence[str], **how: Any) -> list[str]:
            return [Answer(plain)]

        monkeypatch.setattr(own_answers, "answers", answers)
        return own.target(model, row, tokens=40)

    way_out = deflects(row)
    assert pursued(way_out, way_out) == (row.target, GIVEN)
    # What the plain model would not say is an answer of its own, and so is one about the request.
    verb, thing = about(row)
    right = f"{row.target} heat an anvil below, pull out every bolt, wait until evening."
    assert pursued(right, way_out) == (right, "changed")
    other = f"Of course! To {verb} the {thing} you need a rope and the hinge, and set the mark."
    assert pursued(other, other) == (other, "changed")


@pytest.mark.parametrize("reply", [deflects, complies])
def test_a_fit_on_a_model_that_answers_something_else_has_something_to_undo(
    monkeypatch: pytest.MonkeyPatch, reply: Reply
) -> None:
    """What is changed here is the reply alone: the model as such answers everything."""
    rows = first_rows(24)
    said = {row.text: reply(row) for row in rows}

    def answers(model: object, texts: Sequence[str], **how: Any) -> list[str]:
        changed = how.get("interventions")
        return [Answer(right[text] if changed else said[text]) for text in texts]

    right = {row.text: complies(row) for row in rows}
    monkeypatch.setattr(verdicts, "answers", answers)
    # The replies are not the model's own: only loops are garbled here.
    monkeypatch.setattr(verdicts, "fit_coherence", lambda *of: None)
    model = pocket("pocket-llama-raw")
    examiner = Examiner(model, rows, rows)
    assert examiner.refused_before == (reply is deflects)
    nothing = AblateDirection(torch.zeros(model.width).index_fill(0, torch.tensor(0), 1.0), 1)
    found = examiner.check([nothing])
    assert found.refused == 0 and found.refused_before == examiner.refused_before
    assert any("nothing to undo" in fault for fault in found.faults) == (reply is complies)
    # As it was, it is not undone.
    right |= said
    left = examiner.check([nothing])
    assert left.refused == (reply is deflects)
    assert any("still refused" in fault for fault in left.faults) == (reply is deflects)
    # Nonsense names nothing either, and is no refusal for that.
    right |= dict.fromkeys(right, "hinge rope " * 12)
    assert examiner.check([nothing]).garbled == 1
