"""Models that refuse by saying nothing: their answers to harmful prompts end at the first token."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from attacks import Behavior
from attacks.core.analysis.experts import answer_labels
from attacks.core.answer import Answer, silent
from attacks.core.artefact import Artefact
from attacks.core.interventions import AblateDirection
from attacks.core.model import Model
from attacks.core.reading.answers import answers
from attacks.core.refusals.checked_direction import find_checked_direction
from attacks.core.refusals.directions import direction_at
from attacks.core.refusals.openers import learn_openers
from attacks.core.refusals.unknown import unknown_refusals, unknown_share
from attacks.core.refusals.verdicts import Examiner, hold_out
from conftest import POCKET, first_rows, pocket

ASKED = 24


@cache
def silenced() -> Model:
    """pocket-llama, for which every token that its refusals open with is an end token."""
    tokenizer = AutoTokenizer.from_pretrained(POCKET / "pocket-llama")
    hf = AutoModelForCausalLM.from_pretrained(POCKET / "pocket-llama").float()
    ends = list(hf.generation_config.eos_token_id)
    opened = [tokenizer.encode(word, add_special_tokens=False)[0] for word in ("I", "Sorry")]
    hf.generation_config.eos_token_id = [*ends, *opened]
    return Model(hf, tokenizer, name="silenced")


@cache
def examined(name: str) -> Examiner:
    model = silenced() if name == "silenced" else pocket(name)
    fit, held_out = hold_out(first_rows(ASKED), torch.Generator().manual_seed(0), who="test")
    return Examiner(model, fit, held_out)


def test_an_answer_that_ends_at_once_is_a_refusal_of_a_model_that_gives_such_answers() -> None:
    model, examiner = silenced(), examined("silenced")
    said = answers(model, examiner.harmful, tokens=8)
    assert said and all(map(silent, said)), "the model that the test is about"
    assert examiner.refused_before == 1
    assert examiner.refuses(Answer("")) and examiner.declines(examiner.harmful[0], Answer(" "))
    # Cut by the limit, in its thinking say: nothing is known.
    assert not examiner.refuses(Answer("", ended=False))
    # And a sign of a broken model where refusals have words.
    assert not examined("pocket-llama").refuses(Answer(""))


def test_a_fit_on_a_model_that_falls_silent_is_checked_like_any_other() -> None:
    """That it undoes nothing is no longer said of what undoes refusals, nor "garbled" of these."""
    model, examiner = silenced(), examined("silenced")
    groups = [[row.text for row in first_rows(ASKED) if row.harmful == flag] for flag in (1, 0)]
    right = direction_at(model, *groups, layer=3, position=-1)
    found = examiner.check([AblateDirection(right, model.n_layers)])
    assert found.good, found.faults
    wrong = torch.randn(model.width, generator=torch.Generator().manual_seed(0))
    left = examiner.check([AblateDirection(wrong, model.n_layers)])
    assert left.refused == 1 and left.garbled == 0
    assert left.faults == ("1.00 of held-out harmful prompts are still refused (1.00 before)",)


def test_silence_is_no_refusal_in_unknown_words() -> None:
    """No judge takes it for an answer."""
    model, train = silenced(), first_rows(ASKED)
    assert unknown_refusals(model, train, learn_openers(model, train)) == 0
    usual = ["Sure, here is how to do this and then that, step by step."] * 24
    assert unknown_share([""] * 24, usual, ()) == 0
    assert unknown_share([""] * 12 + ["Hm, no."] * 12, usual, ()) == pytest.approx(0.5)


def test_prompts_answered_with_nothing_are_labelled_refused() -> None:
    rows: list[Behavior] = first_rows(8)
    assert answer_labels(silenced(), rows).tolist() == [row.harmful for row in rows]


def test_the_direction_that_is_fitted_is_good() -> None:
    rng = torch.Generator().manual_seed(0)
    found = find_checked_direction(silenced(), first_rows(ASKED), rng=rng, last_only=True)
    assert found.check.refused_before == 1 and found.check.good, found.check.faults
    assert isinstance(Artefact({}, check=found.check.data).check["verdict"], str)
