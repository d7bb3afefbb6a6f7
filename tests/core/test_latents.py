"""Which latents refuse, by attribution; what `ssr-latents` aims at, its loss and its check."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attacks import Behavior, load
from attacks.core.analysis.autoencoder import Kind, SparseAutoencoder
from attacks.core.analysis.latent_aim import (
    LEAST_EFFECT,
    MOST_UNEXPLAINED,
    LatentCheck,
    aim_at_latents,
    check_latents,
)
from attacks.core.analysis.latents import (
    Attribution,
    Autoencoding,
    attribute,
    autoencoder_of,
    request_states,
    scores_at,
)
from attacks.core.artefact import Artefact
from attacks.core.errors import BadInput
from attacks.core.model import Model
from attacks.core.objectives import LatentLoss
from attacks.core.prompt import INSTRUCTION, suffixed
from attacks.core.reading.states import last_token, next_token_log_probs
from attacks.core.refusals.openers import refusal_score, refusal_tokens
from attacks.core.refusals.verdicts import hold_out
from attacks.core.search import Evaluator
from attacks.core.sites import Site
from conftest import check_gradient, first_rows, normal, pocket, tiny

KINDS: tuple[Kind, ...] = ("abs-topk", "topk")
LAYER = 2
SITE = Site(LAYER, "resid_post")
#: Few steps: what most of these tests hold does not depend on how good the autoencoder is.
QUICK = Autoencoding(latents=64, k=4, steps=60)
QUICK_OF = {kind: replace(QUICK, kind=kind) for kind in KINDS}
NEAR: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


def train() -> list[Behavior]:
    return [row.for_attack() for row in first_rows(16)]


def fitted_rows() -> list[Behavior]:
    """Those of `train` that `aim_at_latents` fits on."""
    return hold_out(train(), torch.Generator().manual_seed(0), who="a test")[0]


def texts(harmful: bool) -> list[str]:
    return [row.text for row in train() if row.harmful == harmful]


def openers_of(model: Model) -> torch.Tensor:
    log_probs = (next_token_log_probs(model, texts(flag)) for flag in (True, False))
    return refusal_tokens(*log_probs, most=8)


def test_states_are_read_from_the_request_on() -> None:
    model = pocket("pocket-llama")
    prompts = [model.plain(text) for text in ("How do I paint the harp?", "Tune the bell.")]
    found = request_states(model, prompts, LAYER)
    counts = [len(p.ids) - int((p.roles == INSTRUCTION).nonzero()[0]) for p in prompts]
    assert found.shape == (sum(counts), model.width)
    last = last_token(model, prompts, [Site(LAYER, "resid_post")])[Site(LAYER, "resid_post")]
    for row in last:
        assert float((found - row).norm(dim=1).min()) < 1e-3


@pytest.mark.parametrize("layer", [LAYER, 5])
def test_scores_and_their_gradients_at_other_activations(layer: int) -> None:
    """In float64: 1 - P(refusal) is tiny here."""
    model, site = pocket("pocket-llama", "float64"), Site(layer, "resid_post")
    openers, asked = openers_of(model), texts(True)[:5]
    prompts = [model.plain(text) for text in asked]
    own = last_token(model, asked, [site])[site]
    plain = refusal_score(next_token_log_probs(model, asked).double(), openers)
    torch.testing.assert_close(scores_at(model, prompts, site, openers, own)[0], plain, **NEAR)
    states = own + 0.1 * normal(*own.shape)
    gradient = scores_at(model, prompts, site, openers, states)[1].double()
    direction = torch.nn.functional.normalize(normal(*own.shape, seed=3), dim=1)
    above, below = (
        scores_at(model, prompts, site, openers, states + step * direction)[0]
        for step in (1e-2, -1e-2)
    )
    numeric = (above - below) / 2e-2
    torch.testing.assert_close((gradient * direction).sum(1), numeric, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_attribution_is_ablation_to_first_order(kind: Kind) -> None:
    """Of small parts of a latent's way to harmless prompts, all along the line to these."""
    model, rows = pocket("pocket-llama", "float64"), train()
    autoencoder = autoencoder_of(model, rows, LAYER, QUICK_OF[kind])
    found = attribute(model, autoencoder, rows)
    prompts = [model.plain(text) for text in texts(True)]
    harmful, harmless = (last_token(model, texts(flag), [SITE])[SITE] for flag in (True, False))
    for latent in found.top(2):
        away = autoencoder.encode(harmful)[:, latent] - found.latents[1][latent]
        part = 1e-2 * away.unsqueeze(1) * autoencoder.scale * autoencoder.decoder[latent]
        changes = []
        for at in (0.125, 0.375, 0.625, 0.875):
            states = harmful + at * (harmless.mean(0) - harmful)
            kept, ablated = (
                scores_at(model, prompts, SITE, found.openers, states + sign * part)[0]
                for sign in (1, -1)
            )
            changes.append(float((kept - ablated).mean()) / 2e-2)
        assert float(found.scores[latent]) == pytest.approx(sum(changes) / 4, rel=2e-2)


def test_attributions_of_a_lossless_dictionary_add_up_to_the_whole() -> None:
    """Integrated gradients are complete: from harmful prompts to the mean harmless activation."""
    model, rows = pocket("pocket-llama", "float64"), train()
    eye, none = torch.eye(model.width), torch.zeros(model.width)
    identity = SparseAutoencoder(
        eye, none, eye, none, torch.tensor(1.0), "abs-topk", model.width, LAYER
    )
    found = attribute(model, identity, rows)
    prompts = [model.plain(text) for text in texts(True)]
    harmful, harmless = (last_token(model, texts(flag), [SITE])[SITE] for flag in (True, False))
    ends = (harmful, harmless.mean(0).expand_as(harmful))
    first, last = (scores_at(model, prompts, SITE, found.openers, at)[0].mean() for at in ends)
    assert float(first - last) > 5
    assert float(found.scores.sum()) == pytest.approx(float(first - last), rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_that_refuse_tell_harmful_prompts_whichever_sign(kind: Kind) -> None:
    model = pocket("pocket-llama")
    how = Autoencoding(kind=kind, latents=128, steps=300)
    autoencoder = autoencoder_of(model, train(), LAYER, how)
    found = attribute(model, autoencoder, train())
    assert len(found.openers) and found.whole > 5
    assert 0 < float(found.scores.sum()) < 1.5 * found.whole
    top = found.top(4)
    assert len(top) == 4
    assert found.scores[top].tolist() == sorted(found.scores[top].tolist(), reverse=True)
    moved = found.latents[0] - found.latents[1]
    assert (moved[top].abs() > moved.abs().median()).all()
    if kind == "topk":
        assert (found.latents[0] >= 0).all() and (found.latents[1] >= 0).all()


def test_only_latents_that_agree_with_their_pre_activations_are_chosen() -> None:
    scores = torch.tensor([4.0, 3.0, 2.0, -1.0, 1.0])
    latents = torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0])
    pre = torch.tensor([-1.0, 1.0, -1.0, 1.0, 1.0])
    zero = torch.zeros(5)
    found = Attribution(scores, (latents, zero), (pre, zero), zero, 0.0, torch.arange(1))
    assert found.top(2) == [1, 2] and found.top(9) == [1, 2, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_the_aim_puts_harmful_prompts_at_one_and_harmless_ones_at_zero(kind: Kind) -> None:
    model, rows, how = pocket("pocket-llama"), fitted_rows(), QUICK_OF[kind]
    aim = aim_at_latents(model, train(), LAYER, how)
    autoencoder = autoencoder_of(model, rows, LAYER, how)
    chosen = aim.data["latents"]
    groups = [[row.text for row in rows if row.harmful == flag] for flag in (True, False)]
    harmful, harmless = (last_token(model, asked, [SITE])[SITE] for asked in groups)
    means = [autoencoder.pre(states).double().mean(0)[chosen] for states in (harmful, harmless)]
    assert float(aim.tensors[f"shares.{LAYER}"].sum()) == pytest.approx(1)
    for states, level in ((harmful, 1.0), (harmless, 0.0)):
        z = states @ aim.tensors[f"latents.{LAYER}"].T + aim.tensors[f"offsets.{LAYER}"]
        torch.testing.assert_close(
            z.mean(0), torch.full((len(chosen),), level), atol=1e-3, rtol=1e-3
        )
        pre = autoencoder.pre(states).double()[:, chosen]
        expected = (pre - means[1]) / (means[0] - means[1])
        torch.testing.assert_close(z.double(), expected, atol=2e-3, rtol=1e-3)
        if not level:
            loss = (expected.clamp_min(0) ** 2 @ aim.tensors[f"shares.{LAYER}"].double()).mean()
            assert float(aim.tensors[f"rest.{LAYER}"]) == pytest.approx(float(loss), rel=1e-2)


def test_latent_loss_against_the_formula(behavior: Behavior) -> None:
    model, layers, weights = tiny("llama"), (0, 2), (0.5, 2.0)
    tensors = {}
    for layer, count in zip(layers, (3, 2), strict=True):
        tensors[f"latents.{layer}"] = normal(count, model.width, seed=layer)
        tensors[f"offsets.{layer}"] = normal(count, seed=layer + 10)
        tensors[f"shares.{layer}"] = normal(count, seed=layer + 20).softmax(0)
    prompt = model.prompt(suffixed(behavior, 2), rng=torch.Generator().manual_seed(0))
    bound = LatentLoss(layers, weights).bind(model, prompt, Artefact(tensors))
    states = {site: normal(3, 1, model.width, seed=site.layer + 30) for site in bound.reads}
    for row, loss in enumerate(bound(states)):
        expected = 0.0
        for site, weight in zip(bound.reads, weights, strict=True):
            named = [tensors[f"{name}.{site.layer}"] for name in ("latents", "offsets", "shares")]
            for line, offset, share in zip(*named, strict=True):
                z = float(states[site][row, 0].double() @ line.double() + offset)
                expected += weight * float(share) * max(0.0, z) ** 2
        assert float(loss) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(BadInput, match="1 weights for 2 layers"):
        LatentLoss(layers, (1.0,)).bind(model, prompt, Artefact(tensors))


@pytest.mark.parametrize("kind", KINDS)
def test_latent_loss_gradient_equals_finite_differences(kind: Kind, behavior: Behavior) -> None:
    model = pocket("pocket-llama", "float64")
    artefact = Artefact(aim_at_latents(model, train(), LAYER, QUICK_OF[kind]).tensors)
    prompt = model.prompt(suffixed(behavior, 5), rng=torch.Generator().manual_seed(1))
    bound = LatentLoss((LAYER,)).bind(model, prompt, artefact)
    plain = Evaluator(model, prompt, bound, use_cache=False)
    assert float(plain.losses(prompt.slot_ids.unsqueeze(0))[0]) > 0, "on the refusing side"
    check_gradient(Evaluator(model, prompt, bound), plain)


def test_a_check_says_what_is_wrong() -> None:
    good = LatentCheck(unexplained=0.1, accuracy=1.0, effect=0.5)
    assert good.data["verdict"] == "good" and not good.faults
    for wrong, said in (
        (LatentCheck(MOST_UNEXPLAINED + 0.01, 1.0, 0.5), "0.51 of the variance"),
        (LatentCheck(0.1, 0.8, 0.5), "tell only 0.80 of held-out prompts"),
        (LatentCheck(0.1, 1.0, LEAST_EFFECT - 0.01), "0.24 of the way"),
        (LatentCheck(0.1, 1.0, None), "no token opens refusals"),
    ):
        (fault,) = wrong.faults
        assert said in fault and wrong.data["verdict"] == "failed"


def test_latents_that_refuse_have_an_effect_and_others_have_none() -> None:
    model, rows = pocket("pocket-llama"), [row.for_attack() for row in first_rows(48)]
    fit, held_out = hold_out(rows, torch.Generator().manual_seed(0), who="a test")
    autoencoder = autoencoder_of(model, fit, LAYER, Autoencoding(latents=128, steps=300))
    found = attribute(model, autoencoder, fit)
    first = check_latents(model, autoencoder, found, found.top(8), held_out)
    assert not first.faults
    idle = found.scores.abs().argsort(stable=True)[:8].tolist()
    other = check_latents(model, autoencoder, found, idle, held_out)
    assert other.effect is not None and abs(other.effect) < 0.1
    assert other.unexplained == first.unexplained


def test_an_attack_whose_dictionary_is_bad_says_so() -> None:
    model, few = pocket("pocket-llama"), {"latents": 2, "k": 1, "steps": 0}
    attack = load("ssr-latents", layers=(LAYER,), latents=few)
    check = attack.prepare(model, train(), rng=torch.Generator().manual_seed(0)).check
    assert check["verdict"] == "failed" and set(check["parts"]) == {"own answer", "aim"}
    (layer,) = check["parts"]["aim"]["parts"].values()
    assert layer["unexplained"] > MOST_UNEXPLAINED
    said = f"aim: layer {LAYER}: the autoencoder leaves {layer['unexplained']:.2f} of the variance"
    assert any(fault.startswith(said) for fault in check["faults"])


def test_a_model_that_never_refuses_has_latents_that_differ_and_says_so() -> None:
    aim = aim_at_latents(pocket("pocket-llama-raw"), train(), LAYER, QUICK)
    assert len(aim.data["latents"]) == QUICK.top
    assert aim.check["effect"] is None and aim.check["verdict"] == "failed"
    assert any("no token opens refusals" in fault for fault in aim.check["faults"])


def test_what_cannot_be_aimed_at_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"latents\.top=0; valid: 1 or more"):
        aim_at_latents(pocket("pocket-llama"), train(), LAYER, Autoencoding(top=0))
    fitted = autoencoder_of(pocket("pocket-llama"), train(), LAYER, QUICK)
    with pytest.raises(BadInput, match="harmful and harmless training behaviours"):
        attribute(pocket("pocket-llama"), fitted, train()[:16])
    replace(fitted, encoder=torch.zeros_like(fitted.encoder)).save(tmp_path / "blind")
    with pytest.raises(BadInput, match=f"no sparse latent of layer {LAYER} raises refusal"):
        blind = Autoencoding(path=str(tmp_path / "blind"))
        aim_at_latents(pocket("pocket-llama"), train(), LAYER, blind)


@pytest.mark.slow
def test_a_saved_autoencoder_serves_the_attack_as_the_one_it_fits(tmp_path: Path) -> None:
    model, rows = pocket("pocket-llama"), train()
    fitted = load("ssr-latents", layers=(LAYER,), latents={"latents": 64, "k": 4, "steps": 60})
    autoencoder = autoencoder_of(model, fitted_rows(), LAYER, QUICK)
    path = tmp_path / "one.safetensors"
    autoencoder.save(path)
    given = load("ssr-latents", layers=(LAYER,), latents={"path": str(path)})
    one, other = (
        attack.prepare(model, rows, rng=torch.Generator().manual_seed(0))
        for attack in (fitted, given)
    )
    assert one.hash == other.hash
    assert given.threshold(one) == pytest.approx(0.25**2 + float(one.tensors[f"rest.{LAYER}"]))
    assert load("ssr-latents", enough=0.3).threshold(one) == 0.3
    with pytest.raises(BadInput, match="for layer 2 and width 128, wanted are layer 3"):
        autoencoder_of(model, rows, 3, Autoencoding(path=str(path)))


@pytest.mark.slow
def test_the_search_takes_the_latents_to_the_side_of_acceptance() -> None:
    model, rows = pocket("pocket-llama"), train()
    attack = load("ssr-latents", layers=(LAYER,), steps=6, width=64, keep="none")
    artefact = attack.prepare(model, rows, rng=torch.Generator().manual_seed(0))
    request = first_rows(1, name="pocket-test")[0].for_attack()
    rng = torch.Generator().manual_seed(0)
    *_, last = attack.run(model, request, artefact=artefact, rng=rng)

    def z(text: str) -> torch.Tensor:
        state = last_token(model, [text], [SITE])[SITE][0]
        return artefact.tensors[f"latents.{LAYER}"] @ state + artefact.tensors[f"offsets.{LAYER}"]

    before, after = z(request.text), z(last.prompts[0][-1].content)
    shares = artefact.tensors[f"shares.{LAYER}"]
    assert float(shares @ before) > 0.7 and float(shares @ after) < 0.5 * float(shares @ before)
