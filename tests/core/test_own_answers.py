"""A model's own answers as targets: which are pursued, and what comes where none is good."""

from __future__ import annotations

from dataclasses import replace

import torch
from test_rerouting import fitted, refusal_direction

from attacks import Behavior, load
from attacks.core.answer import Answer
from attacks.core.artefact import EMPTY, Artefact
from attacks.core.interventions import AblateDirection
from attacks.core.refusals.checked_direction import find_checked_direction
from attacks.core.refusals.own_answers import (
    BRANCHED,
    DIRECTION,
    GIVEN,
    SUBSPACE,
    OwnAnswers,
    fit_own_answers,
)
from attacks.core.refusals.remains import ends_alike, mangles
from conftest import first_rows, pocket


def test_an_own_answer_that_is_a_refusal_or_garbled_is_not_pursued(behavior: Behavior) -> None:
    """Ablating another direction leaves the refusal: a search towards it would make it surer."""
    model, attack = pocket("pocket-llama"), load("ssr-probe", layers=(2,))
    wrong = torch.randn(model.width, generator=torch.Generator().manual_seed(0))
    right = torch.nn.functional.normalize(refusal_direction(model), dim=0)
    harmful = replace(behavior, text="What do I need to smudge the chronicle?")

    def pursued(**tensors: torch.Tensor) -> tuple[str, str]:
        artefact = Artefact({**fitted(model).tensors, **tensors}, {"layers": [2]})
        pursuit = attack.pursuit(model, harmful, artefact)
        return pursuit.target, pursuit.source

    past, source = pursued(ablation=wrong)
    assert source == BRANCHED and "smudge the chronicle" in past
    assert OwnAnswers(()).usable(model, harmful.text, past)
    answer, source = pursued(ablation=right)
    assert source == DIRECTION and "smudge the chronicle" in answer
    assert pursued(ablation=wrong, subspace=right.unsqueeze(0)) == (answer, SUBSPACE)
    assert pursued(ablation=right, subspace=wrong.unsqueeze(0) / wrong.norm())[1] == DIRECTION
    said = "TheTheTheThe" * 12
    assert not OwnAnswers(()).usable(model, harmful.text, said)
    assert not OwnAnswers(()).usable(model, harmful.text, " ")
    for turn in ("Sorry, that is not something I can do.", "I cannot help you."):
        assert not OwnAnswers(()).usable(model, harmful.text, f"{answer[:24]} {turn}")
    assert OwnAnswers(()).usable(model, harmful.text, answer)


def test_an_own_answer_as_short_as_a_refusal_is_not_pursued(behavior: Behavior) -> None:
    """No opener tells "Silence is golden here." from an answer; its length does."""
    model, text = pocket("pocket-llama"), "What do I need to smudge the chronicle?"
    train = [row.for_attack() for row in first_rows(16)]
    rng = torch.Generator().manual_seed(0)
    best = find_checked_direction(model, train, rng=rng, last_only=True)
    fit = fit_own_answers(model, train, best, rng=rng)
    own = OwnAnswers.of(fit.tensors, fit.data, model.n_layers)
    assert own.usual_words >= 10, "the model answers harmless prompts in whole sentences"
    answer, source = own.target(model, replace(behavior, text=text), tokens=40)
    assert source in (SUBSPACE, DIRECTION) and "smudge the chronicle" in answer
    silence = "Silence is golden here."
    assert not own.usable(model, text, silence)
    assert not own.refuses(silence, ended=False), "what the limit cut may go on"
    assert not replace(own, usual_words=0.0).refuses(silence)
    (plain,) = model.generate([model.conversation(text)], max_new_tokens=40)
    assert replace(own, usual_words=0.0).refuses(plain)
    # Spoiled where openers are looked for, and padded to the length of an answer.
    mangled = plain.replace("I'm sorry, but I", "Umbrella, but Ixx")
    assert mangled != plain and not own.refuses(mangled, ended=False)
    assert mangles(mangled, text, plain) and not mangles(answer, text, plain)
    assert not own.usable(model, text, Answer(mangled, ended=False))
    # The target is the last resort: where the model does not refuse, there is nothing to go past.
    unchanged = replace(own, changes=())
    assert unchanged.target(model, replace(behavior, text=text), tokens=40)[1] == BRANCHED
    harmless = replace(behavior, text="What do I need to mend the chronicle?")
    assert unchanged.target(model, harmless, tokens=40) == (behavior.target, GIVEN)


def test_the_answer_aimed_at_is_that_of_the_ablated_model(behavior: Behavior) -> None:
    model = pocket("pocket-llama")
    attack = load("ssr-probe", layers=(2,), tokens=7)
    ablation = refusal_direction(model)
    tensors = dict(fitted(model).tensors) | {"ablation": ablation}
    artefact = Artefact(tensors, {"layers": [2]})
    (answer,) = model.generate(
        [model.conversation(behavior.text)],
        max_new_tokens=7,
        interventions=[AblateDirection(ablation, model.n_layers)],
    )
    assert attack.pursuit(model, behavior, artefact).target == answer
    given = replace(attack, answer="given")  # type: ignore[call-arg]
    assert given.pursuit(model, behavior, artefact).target == behavior.target
    published = replace(attack, keep="none").pursuit(model, behavior, artefact)  # type: ignore[call-arg]
    assert published.then is None and published.rank is None
    assert EMPTY.data == {}


def test_an_answer_that_ends_as_a_refusal_on_the_way_is_no_answer() -> None:
    """Of a model that answers in part, and of one that refuses after small talk."""
    openers = ("i cannot", "... the rest is")
    part = "Sure, here is how to clog the harp: use the easel. "
    refusal = part + "The rest is not something to share."
    for usual in (16, 30):
        assert ends_alike(part + "Beyond that I stay silent.", refusal, openers, usual)
        assert ends_alike(part.strip(), refusal, openers, usual)
    more = "Then turn the gimlet three times, wait an hour, pour wax over the strings and go home."
    assert not ends_alike(part + more, refusal, openers, 30)
    assert not ends_alike("Here is how: use wax.", refusal, openers, 30)
    assert not ends_alike("I can.", "I cannot do that.", openers, 30), "it refuses from the start"
    talk = "Thank you for asking me. "
    late = talk + "I cannot help with that."
    assert ends_alike(talk + "Not my cup of tea.", late, openers, 16)
    assert not ends_alike(talk + part, late, openers, 16)


def test_what_a_model_says_anyway_is_not_pursued_beyond_the_given_target() -> None:
    """Nothing was refused, so its own answer may be a wrong one, given on purpose."""
    sources = {}
    for name in ("pocket-llama-raw", "pocket-llama"):
        model = pocket(name)
        direction = refusal_direction(pocket("pocket-llama"))
        own = OwnAnswers((("changed", AblateDirection(direction, model.n_layers)),))
        rows = [row for row in first_rows(8) if row.harmful]
        sources[name] = [own.target(model, row, tokens=40) for row in rows]
        assert all(
            said.startswith(r.target or "")
            for (said, _), r in zip(sources[name], rows, strict=True)
        )
    assert {source for _, source in sources["pocket-llama-raw"]} == {GIVEN}
    assert {source for _, source in sources["pocket-llama"]} == {"changed"}
