"""The contract that every registered defence keeps, installed plugins included."""

from __future__ import annotations

import dataclasses
import json
import random
from functools import cache

import pytest
import torch

from attacks.core.artefact import Artefact
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.model import Model
from benchmarks.defenses import Defense, available, defense_hash, load_defense, params_of
from benchmarks.inputs.behaviors import load_behaviors
from conftest import pocket

#: Every registered defence, and combinations.
COMBINED = ["perplexity+latent-guard", "smooth-llm:copies=2+self-reminder+perplexity"]
#: What has to be given for a defence to be made.
GIVEN = {"guard": "guard:judge='phrases'"}
#: Defences that need another model than `pocket-llama` to do anything.
MODELS = {"cliff": "pocket-llama-think"}
DEFENSES = [*(GIVEN.get(name, name) for name in sorted(available())), *COMBINED]


@cache
def train() -> tuple[Behavior, ...]:
    rows = load_behaviors("pocket-train")
    groups = ([b for b in rows if b.harmful == harmful][:24] for harmful in (True, False))
    return tuple(behavior.for_attack() for group in groups for behavior in group)


@cache
def artefact(spec: str) -> Artefact:
    return load_defense(spec).fit(subject(spec), train(), rng=seeded())


def subject(spec: str) -> Model:
    return pocket(MODELS.get(spec, "pocket-llama"))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def defended(spec: str) -> Model:
    return load_defense(spec).around(subject(spec), artefact(spec))


@pytest.mark.parametrize("spec", DEFENSES)
def test_it_is_its_own_configuration(spec: str) -> None:
    defense = load_defense(spec)
    assert isinstance(defense, Defense)
    assert "+".join(part.partition(":")[0] for part in spec.split("+")) == defense.name
    assert defense.summary and "\n" not in defense.summary
    assert defense.adapts in ("gradient", "search", "none")
    params = params_of(defense)
    assert json.loads(json.dumps(params)) == params
    assert defense_hash(load_defense(spec)) == defense_hash(defense)
    assert hash(load_defense(spec)) == hash(defense)
    with pytest.raises(dataclasses.FrozenInstanceError):
        defense.anything = 1  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="no parameter 'nonsense'"):
        load_defense(f"{spec}{',' if ':' in spec.split('+')[-1] else ':'}nonsense=1")


@pytest.mark.parametrize("spec", DEFENSES)
def test_its_artefact_is_reproducible(spec: str) -> None:
    again = load_defense(spec).fit(subject(spec), train(), rng=seeded())
    assert again.hash == artefact(spec).hash
    json.dumps(dict(again.data))
    assert not again.check or again.check["verdict"] in ("good", "failed")


@pytest.mark.parametrize("spec", DEFENSES)
def test_it_answers_each_request_once_and_leaves_the_world_alone(spec: str) -> None:
    plain, model = subject(spec), defended(spec)
    assert model is not plain and not plain.shields
    asked = [plain.conversation(b.text) for b in load_behaviors("pocket-test")[:3]]
    before = plain.generate(asked, max_new_tokens=6)
    state = (torch.get_rng_state(), random.getstate())
    said = model.generate(asked, max_new_tokens=6)
    assert torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]
    assert len(said) == 3 and all(said)
    assert model.generate(asked, max_new_tokens=6) == said
    # An answer does not depend on who else is asked.
    alone = model.generate(asked[1:2], max_new_tokens=6, pad_to=32, batch_size=4)
    assert alone == model.generate(asked, max_new_tokens=6, pad_to=32, batch_size=4)[1:2]
    assert plain.generate(asked, max_new_tokens=6) == before
    blocked = [getattr(one, "by", "") for one in said]
    assert all(by == "" or by in load_defense(spec).name.split("+") for by in blocked)


@pytest.mark.parametrize("spec", DEFENSES)
def test_attacks_search_through_it(spec: str) -> None:
    from attacks import load

    model = defended(spec)
    behavior = load_behaviors("pocket-test")[0].for_attack()
    attack = load("gcg", steps=2, width=8, topk=8, slots=3)
    runs = [list(attack.run(model, behavior, artefact=Artefact(), rng=seeded())) for _ in range(2)]
    assert [step.loss for step in runs[0]] == [step.loss for step in runs[1]]
    assert len(runs[0]) == 2 and all(step.prompts for step in runs[0])


def test_unknown_names_and_parameters_are_one_clear_line() -> None:
    for spec, reason in [
        ("nonsense", "unknown defence 'nonsense'; valid: .*perplexity"),
        ("perplexity+nonsense", "valid: .*smooth-llm"),
        ("perplexity:window=-1", "at least 0"),
        ("perplexity:window", "TOML"),
        ("perplexity+perplexity", "different parts"),
        ("smooth-llm:kind='shuffle'", "parameter 'kind'"),
        ("latent-guard:token='first'", "instruction"),
    ]:
        with pytest.raises(BadInput, match=reason):
            load_defense(spec)
