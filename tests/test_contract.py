"""The contract that every registered attack keeps, installed plugins included."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Iterator
from functools import cache
from itertools import islice

import numpy as np
import pytest
import torch

from attacks import Attack, Behavior, Step, ThreatModel, available, load, parse_spec
from attacks.core.analysis.survey import Survey, Surveyor, survey
from attacks.core.artefact import Artefact
from attacks.core.errors import BadInput
from attacks.core.model import Model
from attacks.registry import ATTACKS as REGISTRY
from attacks.registry import params_of
from benchmarks.inputs.behaviors import load_behaviors
from conftest import pocket

#: What attacks are tried on that need more than an aligned model.
MODELS = {"control-tokens": "pocket-llama-tokens", "experts": "pocket-moe"}
#: What attacks need that cannot be made without it.
GIVEN = {"replay": {"file": "replay.json"}}
STEPS = 3
#: Every registered attack, and combinations of a search and of single steps.
COMPOSED = ["gcg+refusal-direction", "refusal-tokens+prefill+refusal-direction"]
ATTACKS = [*sorted(available()), *COMPOSED]


def small(name: str) -> Attack:
    """The attack with few steps and candidates, where it has such parameters."""
    wanted = {"steps": STEPS, "width": 16, "topk": 16, "slots": 4, "fit_steps": 10}
    params = {}
    for part in name.split("+"):
        fields = {field.name for field in dataclasses.fields(available()[part])}
        params[part] = {key: value for key, value in wanted.items() if key in fields}
        params[part] |= GIVEN.get(part, {})
    return load(name, **(params if "+" in name else params[name]))


def model_for(name: str) -> Model:
    return pocket(MODELS.get(name, "pocket-llama"))


@cache
def train() -> tuple[Behavior, ...]:
    rows = load_behaviors("pocket-train")
    groups = ([b for b in rows if b.harmful == harmful][:20] for harmful in (True, False))
    return tuple(behavior.for_attack() for group in groups for behavior in group)


@cache
def surveyed(model: Model) -> Survey:
    return survey(model, train(), rng=torch.Generator().manual_seed(1))


@cache
def artefact(name: str) -> Artefact:
    attack, model = small(name), model_for(name)
    if isinstance(attack, Surveyor):
        return attack.fitted(model, surveyed(model), train())
    return attack.prepare(model, train(), rng=torch.Generator().manual_seed(1))


def run(name: str, seed: int = 0, state=None) -> list[Step]:  # type: ignore[no-untyped-def]
    behavior = load_behaviors("pocket-test")[0].for_attack()
    rng = torch.Generator().manual_seed(seed)
    return list(
        small(name).run(model_for(name), behavior, artefact=artefact(name), rng=rng, state=state)
    )


@pytest.fixture(scope="module", autouse=True)
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder with the file that `replay` reads, entered for these tests."""
    folder = tmp_path_factory.mktemp("replay")
    cases = {behavior.id: ["Hello."] for behavior in load_behaviors("pocket-test")}
    (folder / "replay.json").write_text(json.dumps(cases))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_its_own_configuration(name: str) -> None:
    attack = small(name)
    assert attack.name == name
    assert attack.summary and "\n" not in attack.summary
    assert isinstance(attack.threat_model, ThreatModel)
    params = params_of(attack)
    assert json.loads(json.dumps(params)) == params
    assert load(name, **params) == attack
    assert hash(load(name, **params)) == hash(attack)
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.anything = 1  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="no parameter 'nonsense'"):
        load(name, nonsense=1)


@pytest.mark.parametrize("name", ATTACKS)
def test_it_yields_steps_and_leaves_the_world_alone(name: str) -> None:
    model = model_for(name)
    ids = model.plain("Hello.").ids.unsqueeze(0)
    with torch.no_grad():
        before = model.hf(input_ids=ids).logits
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[union-attr, index]
    steps = run(name)
    assert torch.equal(torch.get_rng_state(), states[0]), "draw from rng, not from torch's own"
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # type: ignore[union-attr, index]
    with torch.no_grad():
        assert torch.equal(model.hf(input_ids=ids).logits, before)
    assert steps and (small(name).searches or len(steps) == 1)
    for step in steps:
        assert step.prompts
        assert all(turns[-1].content for turns in step.prompts)
        assert step.loss is None or math.isfinite(step.loss)
        weakest = small(name).threat_model in (ThreatModel.PROMPT, ThreatModel.PREFILL)
        assert not (weakest and step.interventions)


@pytest.mark.parametrize("name", ATTACKS)
def test_one_seed_gives_one_result(name: str) -> None:
    first, again = run(name), run(name)
    assert [step.prompts for step in first] == [step.prompts for step in again]
    assert [step.loss for step in first] == [step.loss for step in again]


@pytest.mark.parametrize("name", ATTACKS)
def test_its_artefact_is_reproducible(name: str) -> None:
    again = small(name).prepare(model_for(name), train(), rng=torch.Generator().manual_seed(1))
    assert again.hash == artefact(name).hash
    json.dumps(dict(again.data))


@pytest.mark.parametrize("name", [name for name in ATTACKS if small(name).searches])
def test_going_on_from_a_step_is_bit_identical(name: str) -> None:
    whole = run(name)
    state = whole[0].state
    if not state:
        own = set(name.split("+")) - REGISTRY.built_in.keys()
        assert own, "shipped searches keep their state"
        pytest.skip("this plugin keeps no checkpoint")
    rest = run(name, state=state)
    assert [step.prompts for step in rest] == [step.prompts for step in whole[1:]]
    assert [step.loss for step in rest] == [step.loss for step in whole[1:]]


@pytest.mark.parametrize("name", [name for name in ATTACKS if small(name).searches])
def test_the_harness_may_stop_asking_at_any_step(name: str) -> None:
    behavior = load_behaviors("pocket-test")[0].for_attack()
    steps = small(name).run(
        model_for(name), behavior, artefact=artefact(name), rng=torch.Generator().manual_seed(0)
    )
    assert len(list(islice(steps, 1))) == 1


def test_specs_are_names_with_toml_parameters() -> None:
    attack = parse_spec("ssr-probe:layers=[2,3],slots=3")
    assert params_of(attack)["layers"] == [2, 3] and params_of(attack)["slots"] == 3
    assert parse_spec("gcg") == load("gcg")
    for spec, reason in [
        ("nonsense", "valid: .*gcg"),
        ("gcg:nonsense=1", "no parameter 'nonsense'; valid: .*width"),
        ("gcg:steps", "TOML"),
        ("gcg:steps='many'", "parameter 'steps'"),
    ]:
        with pytest.raises(BadInput, match=reason):
            parse_spec(spec)
