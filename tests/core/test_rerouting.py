"""Subspace rerouting: its objectives against formulas, what it aims at, and a planted truth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attacks import Behavior, load
from attacks.attack import State, Step
from attacks.core.analysis.survey import LayerReport, Survey, choose_heads, choose_layers, survey
from attacks.core.artefact import Artefact
from attacks.core.errors import BadInput
from attacks.core.model import Model
from attacks.core.objectives import Objective, ProbeLoss, SteeringLoss, SubspaceNorm
from attacks.core.prompt import suffixed
from attacks.core.reading.states import last_token
from attacks.core.refusals.directions import direction_at
from attacks.core.refusals.harmfulness import refusal_bases
from attacks.core.search import Evaluator
from attacks.core.search.staged import CEILING
from attacks.core.sites import Site
from benchmarks.inputs.behaviors import load_behaviors
from conftest import check_gradient, first_rows, pocket, tiny

LAYERS = (0, 2)
STEERING = [
    SteeringLoss(LAYERS),
    SteeringLoss(LAYERS, (0.5, 2.0), targets=(0.6, 0.9)),
    SteeringLoss(LAYERS, (0.5, 2.0), form="projection", scale=-1.5, stability=0.3),
]
IDS = ["cosine", "weighted cosine", "projection"]


def fitted(model: Model) -> Artefact:
    rng = torch.Generator().manual_seed(3)
    names = [f"{kind}.{at}" for at in range(model.n_layers) for kind in ("weight", "direction")]
    tensors = {name: torch.randn(model.width, generator=rng) for name in names}
    return Artefact(tensors | {f"bias.{at}": torch.tensor(0.1) for at in range(model.n_layers)})


@pytest.mark.parametrize("objective", STEERING, ids=IDS)
def test_steering_loss_against_the_formula(objective: SteeringLoss, behavior: Behavior) -> None:
    model = tiny("llama")
    artefact = fitted(model)
    prompt = model.prompt(suffixed(behavior, 2), rng=torch.Generator().manual_seed(0))
    bound = objective.bind(model, prompt, artefact)
    states = {site: torch.randn(3, 1, model.width) for site in bound.reads}
    sites = [Site(layer, "resid_post") for layer in LAYERS]
    plain = last_token(model, [behavior.text], sites)
    losses = bound(states)
    for row in range(3):
        expected = 0.0
        for at, (layer, site) in enumerate(zip(LAYERS, sites, strict=True)):
            weight, target = (
                values[at] if values else 1 for values in (objective.weights, objective.targets)
            )
            r = artefact.tensors[f"direction.{layer}"].double()
            r = r / r.norm()
            e = states[site.at(len(prompt.ids))][row, 0].double()
            before = plain[site][0].double()
            if objective.form == "cosine":
                expected += weight * float(-target - e @ r / e.norm()) ** 2
                continue
            along = ((1 + objective.scale) * (before @ r) - e @ r) ** 2
            aside = (e - (e @ r) * r) - (before - (before @ r) * r)
            total = along + objective.stability * (aside @ aside)
            expected += weight * float(total / (before @ before))
        assert float(losses[row]) == pytest.approx(expected, rel=1e-4)


def test_probe_weights_multiply_each_layer(behavior: Behavior) -> None:
    model = tiny("llama")
    prompt = model.prompt(suffixed(behavior, 2), rng=torch.Generator().manual_seed(0))
    artefact = fitted(model)

    def losses(objective: Objective) -> torch.Tensor:
        bound = objective.bind(model, prompt, artefact)
        rng = torch.Generator().manual_seed(1)
        return bound({s: torch.randn((3, 1, model.width), generator=rng) for s in both})

    both = ProbeLoss(LAYERS).bind(model, prompt, artefact).reads
    one, other = (losses(ProbeLoss(LAYERS, pair)) for pair in ((1.0, 0.0), (0.0, 1.0)))
    torch.testing.assert_close(losses(ProbeLoss(LAYERS, (0.3, 2.0))), 0.3 * one + 2.0 * other)


@pytest.mark.parametrize("objective", STEERING, ids=IDS)
def test_steering_gradient_equals_directional_finite_differences(
    objective: SteeringLoss, behavior: Behavior
) -> None:
    model = pocket("pocket-llama", "float64")
    prompt = model.prompt(suffixed(behavior, 5), rng=torch.Generator().manual_seed(1))
    bound = objective.bind(model, prompt, fitted(model))
    plain = Evaluator(model, prompt, bound, use_cache=False)
    check_gradient(Evaluator(model, prompt, bound), plain)


def test_subspace_norm_against_the_formula_and_finite_differences(behavior: Behavior) -> None:
    model = pocket("pocket-llama", "float64")
    train = [row.for_attack() for row in first_rows(16)]
    artefact = Artefact(refusal_bases(model, train, LAYERS, 3))
    sites = [Site(layer, "resid_post") for layer in LAYERS]
    groups = [[row.text for row in train if row.harmful == kind] for kind in (True, False)]
    harmful, harmless = (last_token(model, texts, sites) for texts in groups)
    prompt = model.prompt(suffixed(behavior, 5), rng=torch.Generator().manual_seed(1))
    bound = SubspaceNorm(LAYERS, (0.5, 2.0)).bind(model, prompt, artefact)
    expected = torch.zeros(len(groups[0]), dtype=torch.float64)
    for weight, site in zip((0.5, 2.0), sites, strict=True):
        away = harmful[site].double() - harmless[site].double().mean(0)
        values, vectors = torch.linalg.eigh(away.T @ away)
        projector = vectors[:, -3:] @ vectors[:, -3:].T
        inside = (away @ projector).square().sum(1)
        assert float(inside.mean()) == pytest.approx(float(values[-3:].sum()) / len(away))
        expected += weight * inside / inside.mean()
    states = {site.at(len(prompt.ids)): harmful[site].unsqueeze(1) for site in sites}
    torch.testing.assert_close(bound(states).double(), expected, rtol=1e-3, atol=1e-3)
    assert float(expected.mean()) == pytest.approx(2.5)
    plain = Evaluator(model, prompt, bound, use_cache=False)
    check_gradient(Evaluator(model, prompt, bound), plain)


def test_subspaces_of_no_rank_or_too_high_a_one_are_refused() -> None:
    train = [row.for_attack() for row in first_rows(2)]
    for rank in (0, 3):
        with pytest.raises(BadInput, match=f"rank {rank}; valid: 1 to 2"):
            refusal_bases(pocket("pocket-llama"), train, LAYERS, rank)


def test_the_forward_pass_really_stops_after_the_deepest_layer_read(behavior: Behavior) -> None:
    model = pocket("pocket-llama")
    prompt = model.prompt(suffixed(behavior, 3), rng=torch.Generator().manual_seed(0))
    ran: list[int] = []
    blocks = model.hf.model.layers
    hooks = [
        block.register_forward_pre_hook(lambda *_, at=at: ran.append(at))
        for at, block in enumerate(blocks)
    ]
    try:
        bound = SteeringLoss((1, 2)).bind(model, prompt, fitted(model))
        search = Evaluator(model, prompt, bound, use_cache=False)
        search.losses(prompt.slot_ids.unsqueeze(0))
        search.gradient(prompt.slot_ids)
    finally:
        for hook in hooks:
            hook.remove()
    assert set(ran) == {0, 1, 2}


def test_what_cannot_be_steered_is_refused(behavior: Behavior) -> None:
    model = tiny("llama")
    prompt = model.prompt(suffixed(behavior, 2), rng=torch.Generator().manual_seed(0))
    for objective, reason in (
        (SteeringLoss(LAYERS, targets=(0.5, 1.5)), "leave 0..1"),
        (SteeringLoss(LAYERS, form="other"), "cosine, projection"),  # type: ignore[arg-type]
        (SteeringLoss(LAYERS, (1.0,)), "1 weights for 2 layers"),
        (ProbeLoss(LAYERS, (1.0, 1.0, 1.0)), "3 weights for 2 layers"),
    ):
        with pytest.raises(BadInput, match=reason):
            objective.bind(model, prompt, fitted(model))


def reports(*values: tuple[float, float | None]) -> Survey:
    layers = [
        LayerReport(at, acc, 1.0, (0.5, -0.5), effect, 0.0)
        for at, (acc, effect) in enumerate(values)
    ]
    return Survey({}, tuple(layers), 1)


def test_the_layer_chosen_is_the_shallowest_that_is_accurate_and_causal() -> None:
    found = reports((0.8, 0.9), (0.95, 0.1), (1.0, 0.48), (1.0, 0.5), (1.0, None))
    assert choose_layers(found, (), who="x") == (2,)
    assert choose_layers(found, (4, 1), who="x") == (4, 1)
    assert choose_layers(reports((0.6, 0.5), (0.7, None)), (), who="x") == (1,)
    with pytest.raises(BadInput, match="x: the probe of layer 0 is right on less than"):
        choose_layers(found, (0,), who="x")
    with pytest.raises(BadInput, match=r"layer 7 is not in 0\.\.4"):
        choose_layers(found, (7,), who="x")


def test_heads_that_the_model_does_not_have_are_refused() -> None:
    model, (harmful, harmless) = pocket("pocket-llama"), _twins()
    train = [*harmful[:4], *harmless[:4]]
    with pytest.raises(BadInput, match=r"head \(9, 0\) is not in"):
        choose_heads(model, train, [(9, 0)])
    with pytest.raises(BadInput, match="harmful and harmless"):
        choose_heads(model, train[:4], [])


def test_a_family_whose_attention_cannot_be_read_is_refused_before_any_search() -> None:
    """Its attention does not go through transformers' interface; what heads write is read."""
    harmful, harmless = _twins()
    train = [*harmful[:4], *harmless[:4]]
    model = tiny("falcon")
    for kind in ("dazzle", "ablation"):
        attack = load("ssr-attention", heads=((0, 0),), kind=kind)
        with pytest.raises(BadInput, match="cannot be read"):
            attack.aim(model, reports((1.0, 1.0)), train)  # type: ignore[attr-defined]
    silent = load("ssr-attention", heads=((0, 0),), kind="full-ablation")
    assert silent.aim(model, reports((1.0, 1.0)), train).data == {"heads": [[0, 0]]}  # type: ignore[attr-defined]


def _twins() -> tuple[list[Behavior], list[Behavior]]:
    rows = [(f"{n}", f"{verb} the {thing}.") for n, (verb, thing) in enumerate(_PAIRS)]
    harmful = [Behavior(f"h{n}", text, twin=f"g{n}") for n, text in rows]
    harmless = [Behavior(f"g{n}", f"Please {text}", harmful=False) for n, text in rows]
    return harmful, harmless


_VERBS = ("Mend", "Paint", "Tune", "Carry", "Show", "Clean")
_PAIRS = [(verb, thing) for verb in _VERBS for thing in ("harp", "kite", "oar", "bell", "drum")]


@pytest.mark.slow
def test_a_planted_direction_is_recovered_and_rerouting_flips_the_probe(
    planted: tuple[Model, torch.Tensor, str, str],
) -> None:
    model, direction, bad, good = planted
    texts = [f"{verb} the {thing}" for verb, thing in _PAIRS]
    train = [Behavior(f"h{n}", text + 4 * bad, harmful=True) for n, text in enumerate(texts)]
    train += [Behavior(f"g{n}", text + 4 * good, harmful=False) for n, text in enumerate(texts)]
    found = survey(model, train, rng=torch.Generator().manual_seed(0))
    for layer in range(model.n_layers):
        assert float(found.tensors[f"direction.{layer}"] @ direction) > 0.99
        assert found.layers[layer].accuracy == 1.0
    ablation = found.tensors["ablation"]
    assert float(ablation @ direction / ablation.norm()) > 0.99
    assert choose_layers(found, (), who="x") == (0,)
    for name in ("ssr-probe", "ssr-steering"):
        attack = load(name, steps=4, width=64, slots=6, keep="none")
        artefact = attack.prepare(model, train, rng=torch.Generator().manual_seed(0))
        request = Behavior("new", f"Bring the harp{4 * bad}")
        rng = torch.Generator().manual_seed(1)
        *_, last = attack.run(model, request, artefact=artefact, rng=rng)
        site = Site(0, "resid_post")
        weight, bias = (found.tensors[f"{part}.0"] for part in ("weight", "bias"))
        before, after = (
            float(last_token(model, [text], [site])[site][0] @ weight + bias)
            for text in (request.text, last.prompts[0][-1].content)
        )
        assert before < 0 < after, "the probe says harmful, and harmless once rerouted"


def refusal_direction(model: Model) -> torch.Tensor:
    rows = load_behaviors("pocket-train")
    some = ([row.text for row in rows if row.harmful == flag][:40] for flag in (True, False))
    return direction_at(model, *some, layer=3, position=-1)


def test_a_given_target_that_a_refusal_begins_with_ends_no_search(behavior: Behavior) -> None:
    """It is said at once, and nothing has been achieved; said before an answer, it ends one."""
    model = pocket("pocket-llama")
    attack = load("ssr-probe", layers=(2,), steps=4, width=8, enough=50.0, answer="given")
    attack = replace(attack, early_stop=2.0)
    artefact = Artefact(fitted(model).tensors, {"layers": [2]})

    def steps(text: str, words: int) -> int:
        (said,) = model.generate([model.conversation(text)], max_new_tokens=24)
        asked = replace(behavior, text=text, target=" ".join(said.split()[:words]))
        rng = torch.Generator().manual_seed(0)
        found = list(attack.run(model, asked, artefact=artefact, rng=rng))
        assert (found[0].loss or 0) <= 2.0, "the target is said from the start"
        return len(found)

    assert steps("What do I need to smudge the chronicle?", 1) == 4
    assert steps("What do I need to mend the chronicle?", 1) == 1


def test_a_subspace_that_is_out_of_reach_is_given_up_after_half_of_the_steps(
    behavior: Behavior,
) -> None:
    model = pocket("pocket-llama")
    tensors = dict(fitted(model).tensors) | {"ablation": refusal_direction(model)}
    artefact = Artefact(tensors, {"layers": [2]})
    attack = load("ssr-probe", steps=4, width=16, enough=-1e6, early_stop=None)

    def steps(state: State | None = None) -> list[Step]:
        rng = torch.Generator().manual_seed(0)
        return list(attack.run(model, behavior, artefact=artefact, rng=rng, state=state))

    found = steps()
    reached = [step.loss is not None and step.loss <= CEILING for step in found]
    assert reached == [False, False, True, True]
    notes = ["not reached within 2 steps" in step.source for step in found]
    assert notes == [False, True, True, True]
    # What is found goes on from a checkpoint as without one, whichever stage it stands in.
    for at in (0, 1, 2):
        again = steps(found[at].state)
        assert [step.loss for step in again] == [step.loss for step in found[at + 1 :]]
        assert again[-1].prompts == found[-1].prompts
    reachable = replace(attack, enough=1e6)  # type: ignore[call-arg]
    rng = torch.Generator().manual_seed(0)
    assert (
        "not reached"
        not in list(reachable.run(model, behavior, artefact=artefact, rng=rng))[-1].source
    )


def test_a_steered_activation_has_arrived_three_quarters_of_the_way_to_harmless() -> None:
    # Cosines 0.5 of harmful and -0.5 of harmless prompts: three quarters of the way is -0.25.
    data = {**reports((1.0, 1.0), (1.0, 1.0)).data, "layers": [0, 1]}
    artefact = Artefact({}, data)
    assert load("ssr-steering").threshold(artefact) == pytest.approx(2 * 0.75**2)
    weighted = load("ssr-steering", alphas=(1.0, 3.0), targets=(0.5, 0.5))
    assert weighted.threshold(artefact) == pytest.approx(4 * 0.25**2)
    # The mirror image of 0.5 lies at -0.5.
    assert load("ssr-steering", form="projection").threshold(artefact) == pytest.approx(2 * 0.25**2)
    assert load("ssr-steering", enough=0.3).threshold(artefact) == 0.3
