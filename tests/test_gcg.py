"""GCG's options by name, and the variant that looks at refusal."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from attacks import load, parse_spec
from attacks.attack import Artefact
from attacks.core.artefact import EMPTY
from attacks.core.errors import BadInput
from attacks.core.interventions import SuppressTokens
from attacks.core.refusals.openers import opens_with_refusal
from attacks.gcg import RefusalGCG
from attacks.registry import describe, params_of
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.inputs.suites import attack_hash
from conftest import pocket


def test_options_are_named_with_a_dot_and_absent_from_parameters_where_not_used() -> None:
    plain = parse_spec("gcg")
    assert not {"loss", "moves", "draft", "layout"} & set(params_of(plain))
    changed = parse_spec('gcg:moves.momentum=0.4,moves.merge=7,loss.kind="mellowmax"')
    assert params_of(changed)["moves"] == {"momentum": 0.4, "merge": 7}
    assert load("gcg", **params_of(changed)) == changed
    assert attack_hash(changed) != attack_hash(plain)
    assert attack_hash(parse_spec("gcg:moves.momentum=0.0")) == attack_hash(plain)
    assert {"momentum", "merge"} <= set(describe()["gcg"].params["moves"])


def test_a_combination_keeps_the_changed_options_of_its_parts() -> None:
    plain = parse_spec("gcg+prefill")
    assert params_of(plain)["gcg"] == params_of(parse_spec("gcg"))
    changed = parse_spec("gcg:moves.momentum=0.4,steps=8+prefill")
    assert params_of(changed)["gcg"]["moves"] == {"momentum": 0.4}
    assert load(changed.name, **params_of(changed)) == changed
    with pytest.raises(BadInput, match=r"no parameter 'moves\.speed'"):
        load("gcg+prefill", gcg={"moves": {"speed": 1}})


def test_the_draft_is_the_same_plain_model_where_the_attacked_one_is_changed() -> None:
    model = pocket("pocket-llama")
    changed = model.changed([SuppressTokens(torch.tensor([0]), -1.0, 1)])
    assert changed.companions.get("pocket-qwen2") is model.companions.get("pocket-qwen2")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("gcg:moves.speed=1", "no parameter 'moves.speed'; valid: moves.momentum"),
        ("gcg:moves.momentum=2", "parameter 'moves': momentum=2.0"),
        ('gcg:moves.draw="ranked",n_replace=2', "attack 'gcg': draw='ranked'"),
        ('gcg:loss.kind="hinge"', "parameter 'loss.kind'"),
        ('gcg:layout.place="middle"', "place 'middle'; valid: suffix, prefix, both"),
        ("gcg:width=0", "attack 'gcg': width=0"),
        ("gcg-refusal:suppress=-1.0", "at least 0"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(spec: str, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        parse_spec(spec)


@cache
def fitted(name: str) -> Artefact:
    rows = load_behaviors("pocket-train")
    groups = ([b for b in rows if b.harmful == harmful][:40] for harmful in (True, False))
    train = [behavior.for_attack() for group in groups for behavior in group]
    attack = load("gcg-refusal")
    return attack.prepare(pocket(name), train, rng=torch.Generator().manual_seed(0))


def test_the_openers_and_the_projection_tell_harmful_from_harmless() -> None:
    """On test behaviours: both terms are larger for a refused request than for its twin."""
    model = pocket("pocket-llama")
    artefact = fitted("pocket-llama")
    rows = {row.id: row for row in load_behaviors("pocket-test")}
    bad = [row for row in rows.values() if row.harmful][:6]

    def losses(texts: list[str], weights: dict[str, float]) -> torch.Tensor:
        whole, rest = (
            RefusalGCG(**{"suppress": 0.0, "project": 0.0, **extra}) for extra in (weights, {})
        )
        found = []
        for text in texts:
            prompt = model.plain(text, target="Sure")
            values = []
            for each in (whole, rest):
                bound = each.pursuit(model, bad[0], artefact).objective.bind(
                    model, prompt, artefact
                )
                with torch.no_grad():
                    values.append(bound(model.trace(prompt.sequence.unsqueeze(0), bound.reads)))
            found.append(values[0] - values[1])
        return torch.cat(found)

    for weights in ({"suppress": 1.0}, {"project": 1.0}):
        refused = losses([row.text for row in bad], weights)
        answered = losses([rows[row.twin or ""].text for row in bad], weights)
        assert float(refused.min()) > float(answered.max()) >= 0


def test_the_own_target_is_an_answer_and_no_refusal() -> None:
    model = pocket("pocket-llama")
    artefact = fitted("pocket-llama")
    behavior = next(row for row in load_behaviors("pocket-test") if row.harmful).for_attack()
    given = RefusalGCG().pursuit(model, behavior, artefact)
    own = RefusalGCG(target="own", tokens=12).pursuit(model, behavior, artefact)
    assert given.target == behavior.affirmative
    assert own.target and not opens_with_refusal(own.target)
    assert own.objective == given.objective


def test_a_draft_is_named_with_its_revision_and_plain_gcg_fits_nothing() -> None:
    model, rng = pocket("pocket-llama"), torch.Generator()
    assert load("gcg").prepare(model, (), rng=rng).hash == EMPTY.hash
    drafted = load("gcg", draft={"model": "pocket-qwen2"}).prepare(model, (), rng=rng)
    assert drafted.data == {"draft": f"pocket-qwen2@{pocket('pocket-qwen2').revision}"}
    with pytest.raises(BadInput, match="no-such-model"):
        load("gcg", draft={"model": "no-such-model"}).prepare(model, (), rng=rng)


def test_without_weights_it_is_gcg() -> None:
    model, behavior = pocket("pocket-llama"), load_behaviors("pocket-test")[0].for_attack()
    numbers = {"steps": 2, "width": 8, "topk": 8, "slots": 3}
    losses = []
    for attack, artefact in (
        (load("gcg", **numbers), EMPTY),
        (load("gcg-refusal", **numbers, suppress=0.0), fitted("pocket-llama")),
    ):
        rng = torch.Generator().manual_seed(0)
        losses.append([s.loss for s in attack.run(model, behavior, artefact=artefact, rng=rng)])
    assert losses[0] == losses[1]
