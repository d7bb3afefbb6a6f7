"""Sparse autoencoders against numpy and planted features; latents that refuse; `ssr-latents`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from attacks import Behavior, load
from attacks.core.analysis.autoencoder import Kind, SparseAutoencoder, fit_autoencoder, sparse
from attacks.core.analysis.latents import (
    Attribution,
    Autoencoding,
    ShiftLast,
    aim_at_latents,
    attribute,
    autoencoder_of,
    request_states,
    score_gradients,
)
from attacks.core.artefact import Artefact
from attacks.core.errors import BadInput
from attacks.core.objectives import LatentLoss
from attacks.core.prompt import INSTRUCTION, suffixed
from attacks.core.reading.states import last_token, next_token_log_probs
from attacks.core.refusals.openers import refusal_score, refusal_tokens
from attacks.core.search import Evaluator
from attacks.core.sites import Site
from conftest import check_gradient, first_rows, pocket, tiny

KINDS: tuple[Kind, ...] = ("abs-topk", "topk")
LAYER = 2
FEATURES, WIDTH, ACTIVE = 24, 16, 2
#: Few steps: what these tests hold does not depend on how good the autoencoder is.
QUICK = Autoencoding(latents=64, k=4, steps=60)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_autoencoder(kind: Kind, k: int = 3) -> SparseAutoencoder:
    decoder = torch.nn.functional.normalize(normal(12, 8, seed=1), dim=1)
    parts = (normal(12, 8, seed=2), normal(12, seed=3), decoder, normal(8, seed=4))
    return SparseAutoencoder(*parts, torch.tensor(1.7), kind, k, LAYER)


def train() -> list[Behavior]:
    return [row.for_attack() for row in first_rows(16)]


def planted_features(kind: Kind) -> tuple[torch.Tensor, torch.Tensor]:
    """True unit features (F, D) and activations (N, D), each made of `ACTIVE` of them."""
    rng = torch.Generator().manual_seed(7)
    true = torch.nn.functional.normalize(torch.randn((FEATURES, WIDTH), generator=rng), dim=1)
    codes = torch.zeros(4000, FEATURES)
    at = torch.rand(codes.shape, generator=rng).topk(ACTIVE, dim=1).indices
    values = 1 + torch.rand(at.shape, generator=rng)
    if kind == "abs-topk":
        values *= 1 - 2 * torch.randint(2, at.shape, generator=rng)
    return true, codes.scatter(1, at, values) @ true


def fitted_on(states: torch.Tensor, kind: Kind) -> SparseAutoencoder:
    size: dict[str, Any] = {"layer": 0, "latents": FEATURES, "k": ACTIVE, "steps": 1500}
    return fit_autoencoder(states, kind=kind, **size, rng=torch.Generator().manual_seed(0))


def recovered(found: torch.Tensor, true: torch.Tensor, *, signed: bool) -> float:
    cosines = torch.nn.functional.normalize(found, dim=1) @ true.T
    return float((cosines if signed else cosines.abs()).amax(0).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_encode_and_decode_against_numpy(kind: Kind) -> None:
    autoencoder, states = some_autoencoder(kind), normal(40, 8, seed=5)
    encoder, bias, decoder, middle = (
        getattr(autoencoder, name).double().numpy()
        for name in ("encoder", "bias", "decoder", "middle")
    )
    away = (states.double().numpy() - middle) / 1.7
    expected = np.zeros((40, 12))
    for row, x in enumerate(away):
        pre = np.array([sum(w * v for w, v in zip(line, x, strict=True)) for line in encoder])
        pre += bias
        size = np.abs(pre) if kind == "abs-topk" else pre
        for at in np.argsort(-size)[:3]:
            expected[row, at] = pre[at] if kind == "abs-topk" else max(pre[at], 0.0)
    codes = autoencoder.encode(states)
    np.testing.assert_allclose(codes.numpy(), expected, rtol=1e-4, atol=1e-5)
    rebuilt = middle + 1.7 * expected @ decoder
    np.testing.assert_allclose(autoencoder.decode(codes).numpy(), rebuilt, rtol=1e-4, atol=1e-5)
    rest = np.square(states.numpy() - rebuilt).sum() / np.square(states.numpy() - middle).sum()
    assert autoencoder.unexplained(states) == pytest.approx(rest, rel=1e-4)


def test_abs_topk_keeps_a_sign_that_topk_cannot() -> None:
    pre = torch.tensor([[-3.0, 1.0, 2.0, -0.5], [-1.0, -2.0, -3.0, -4.0]])
    kept = torch.tensor([[-3.0, 0.0, 2.0, 0.0], [0.0, 0.0, -3.0, -4.0]])
    assert torch.equal(sparse(pre, 2, "abs-topk"), kept)
    assert torch.equal(sparse(-pre, 2, "abs-topk"), -kept), "odd: the other side is its mirror"
    positive = torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(sparse(pre, 2, "topk"), positive)


@pytest.mark.parametrize("kind", KINDS)
def test_planted_features_are_recovered_above_chance(kind: Kind) -> None:
    true, states = planted_features(kind)
    fitted = fitted_on(states, kind)
    signed = kind == "topk"
    chance = max(
        recovered(normal(FEATURES, WIDTH, seed=seed), true, signed=signed) for seed in range(20, 40)
    )
    assert chance < 0.75, "random directions are not taken for the features"
    assert recovered(fitted.decoder, true, signed=signed) > 0.9
    assert fitted.unexplained(states) < 0.15
    torch.testing.assert_close(fitted.decoder.norm(dim=1), torch.ones(FEATURES))
    assert int((fitted.encode(states) != 0).sum(1).max()) <= ACTIVE


def test_topk_needs_two_latents_for_what_abs_topk_says_with_one() -> None:
    """Features of both signs: a code of as many latents as features rebuilds them or does not."""
    _, states = planted_features("abs-topk")
    rest = {kind: fitted_on(states, kind).unexplained(states) for kind in KINDS}
    assert rest["abs-topk"] < rest["topk"] / 2


def test_a_seed_gives_one_autoencoder_and_another_seed_another() -> None:
    states = normal(300, 8)
    same = {"layer": 0, "latents": 16, "k": 2, "kind": "topk", "steps": 30}
    one, again, other = (
        fit_autoencoder(states, **same, rng=torch.Generator().manual_seed(seed)).decoder  # type: ignore[arg-type]
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_loaded(kind: Kind, tmp_path: Path) -> None:
    autoencoder, path = some_autoencoder(kind), tmp_path / "one.safetensors"
    autoencoder.save(path)
    found, states = SparseAutoencoder.load(path), normal(5, 8)
    assert (found.kind, found.k, found.layer) == (kind, 3, LAYER)
    assert torch.equal(found.encode(states), autoencoder.encode(states))
    assert torch.equal(found.decode(normal(5, 12)), autoencoder.decode(normal(5, 12)))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        SparseAutoencoder.load(tmp_path / "none")
    (tmp_path / "text").write_text("text")
    save_file({"encoder": torch.zeros(2, 2)}, tmp_path / "other")
    for name in ("text", "other"):
        with pytest.raises(BadInput, match=f"{name}' is not a file that"):
            SparseAutoencoder.load(tmp_path / name)
    some_autoencoder("topk").save(tmp_path / "narrow")
    how = Autoencoding(path=str(tmp_path / "narrow"))
    with pytest.raises(BadInput, match="layer 2 and width 8, wanted are layer 2 and width 128"):
        autoencoder_of(pocket("pocket-llama"), train(), LAYER, how)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"k": 0}, "k=0; valid: 1 to latents=16"),
        ({"k": 17}, "k=17; valid: 1 to latents=16"),
        ({"kind": "relu"}, "kind 'relu'; valid: abs-topk, topk"),
        ({"steps": -1}, "steps=-1; valid: 0 or more"),
    ],
)
def test_what_cannot_be_fitted_is_refused(wrong: dict[str, Any], reason: str) -> None:
    right = {"layer": 0, "latents": 16, "k": 2, "kind": "topk", "steps": 1}
    with pytest.raises(BadInput, match=reason):
        fit_autoencoder(normal(9, 4), **{**right, **wrong}, rng=torch.Generator())
    with pytest.raises(BadInput, match="all the same"):
        fit_autoencoder(torch.ones(9, 4), **right, rng=torch.Generator())  # type: ignore[arg-type]


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
def test_score_gradients_equal_finite_differences(layer: int) -> None:
    model = pocket("pocket-llama", "float64")
    harmful, harmless = ([row.text for row in train() if row.harmful == kind] for kind in (1, 0))
    openers = refusal_tokens(
        *(next_token_log_probs(model, texts) for texts in (harmful, harmless)), most=8
    )
    prompts, site = [model.plain(text) for text in harmful[:5]], Site(layer, "resid_post")
    moved = 0.1 * normal(5, model.width)
    gradient = score_gradients(model, prompts, site, openers, moved)
    direction = torch.nn.functional.normalize(normal(5, model.width, seed=3), dim=1)
    for at, prompt in enumerate(prompts):
        values, end = [], Site(-1, "logits", (len(prompt.ids) - 1,))
        for step in (1e-2, -1e-2):
            change = ShiftLast(site, (moved[at] + step * direction[at]).view(1, 1, -1))
            # In float64, for 1 - P(refusal) is tiny here.
            logits = model.trace(prompt.ids[None], [end], interventions=[change])[end][:, 0]
            values.append(float(refusal_score(logits.double().log_softmax(1), openers)[0]))
        numeric = (values[0] - values[1]) / 2e-2
        analytic = float(gradient[at].double() @ direction[at].double())
        assert numeric == pytest.approx(analytic, rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_that_refuse_tell_harmful_prompts_whichever_sign(kind: Kind) -> None:
    model = pocket("pocket-llama")
    how = Autoencoding(kind=kind, latents=128, steps=300)
    autoencoder = autoencoder_of(model, train(), LAYER, how)
    found = attribute(model, autoencoder, train())
    assert found.refuses and found.whole > 5
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
    found = Attribution(scores, (latents, zero), (pre, zero), zero, 0.0, True)
    assert found.top(2) == [1, 2] and found.top(9) == [1, 2, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_the_aim_puts_harmful_prompts_at_one_and_harmless_ones_at_zero(kind: Kind) -> None:
    model, rows = pocket("pocket-llama"), train()
    how = Autoencoding(kind=kind, latents=64, k=4, steps=60)
    aim = aim_at_latents(model, rows, LAYER, how)
    autoencoder = autoencoder_of(model, rows, LAYER, how)
    site, chosen = Site(LAYER, "resid_post"), aim.data["latents"]
    groups = [[row.text for row in rows if row.harmful == flag] for flag in (True, False)]
    harmful, harmless = (last_token(model, texts, [site])[site] for texts in groups)
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
    how = Autoencoding(kind=kind, latents=64, k=4, steps=60)
    artefact = Artefact(aim_at_latents(model, train(), LAYER, how).tensors)
    prompt = model.prompt(suffixed(behavior, 5), rng=torch.Generator().manual_seed(1))
    bound = LatentLoss((LAYER,)).bind(model, prompt, artefact)
    plain = Evaluator(model, prompt, bound, use_cache=False)
    assert float(plain.losses(prompt.slot_ids.unsqueeze(0))[0]) > 0, "on the refusing side"
    check_gradient(Evaluator(model, prompt, bound), plain)


def test_a_model_that_never_refuses_has_latents_that_differ() -> None:
    aim = aim_at_latents(pocket("pocket-llama-raw"), train(), LAYER, QUICK)
    assert not aim.data["refuses"] and len(aim.data["latents"]) == QUICK.top
    with pytest.raises(BadInput, match=r"latents\.top=0; valid: 1 or more"):
        aim_at_latents(pocket("pocket-llama"), train(), LAYER, Autoencoding(top=0))
    with pytest.raises(BadInput, match="harmful and harmless training behaviours"):
        attribute(pocket("pocket-llama"), some_autoencoder("topk"), train()[:16])


def test_a_saved_autoencoder_serves_the_attack_as_the_one_it_fits(tmp_path: Path) -> None:
    model, rows = pocket("pocket-llama"), train()
    fitted = load("ssr-latents", layers=(LAYER,), latents={"latents": 64, "k": 4, "steps": 60})
    autoencoder = autoencoder_of(model, rows, LAYER, QUICK)
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


def test_the_search_takes_the_latents_to_the_side_of_acceptance() -> None:
    model, rows = pocket("pocket-llama"), train()
    attack = load("ssr-latents", layers=(LAYER,), steps=6, width=64, keep="none")
    artefact = attack.prepare(model, rows, rng=torch.Generator().manual_seed(0))
    request = first_rows(1, name="pocket-test")[0].for_attack()
    rng = torch.Generator().manual_seed(0)
    *_, last = attack.run(model, request, artefact=artefact, rng=rng)
    site = Site(LAYER, "resid_post")

    def z(text: str) -> torch.Tensor:
        state = last_token(model, [text], [site])[site][0]
        return artefact.tensors[f"latents.{LAYER}"] @ state + artefact.tensors[f"offsets.{LAYER}"]

    before, after = z(request.text), z(last.prompts[0][-1].content)
    shares = artefact.tensors[f"shares.{LAYER}"]
    assert float(shares @ before) > 0.7 and float(shares @ after) < 0.5 * float(shares @ before)
