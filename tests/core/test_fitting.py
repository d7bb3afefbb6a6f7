"""Probes, directions and refusal openers, against planted truth."""

from __future__ import annotations

import math

import pytest
import torch

from attacks.core.behavior import Behavior
from attacks.core.interventions import AblateDirection, Context, SuppressTokens
from attacks.core.reading.probes import fit_probe
from attacks.core.reading.states import last_token
from attacks.core.refusals.directions import difference_in_means
from attacks.core.refusals.openers import (
    GENERAL_OPENERS,
    learn_openers,
    opens_with_refusal,
    refusal_score,
    refusal_tokens,
)
from attacks.core.sites import Site
from conftest import ALIGNED, pocket, tiny


def test_a_probe_finds_a_planted_direction(rng: torch.Generator) -> None:
    planted = torch.nn.functional.normalize(torch.randn(16, generator=rng), dim=0)
    noise = torch.randn((400, 16), generator=rng) * 0.3
    harmful, harmless = noise[:200] - planted, noise[200:] + planted
    probe = fit_probe(harmful, harmless, rng=rng)
    assert probe.accuracy > 0.99
    assert torch.cosine_similarity(probe.weight, planted, dim=0) > 0.9
    assert ((harmless @ probe.weight + probe.bias) > 0).float().mean() > 0.99


def test_a_probe_on_noise_is_known_to_be_bad(rng: torch.Generator) -> None:
    """The accuracy is that on held-out rows; on the rows fitted it would be close to one."""
    noise = torch.randn((120, 60), generator=rng)
    probe = fit_probe(noise[:60], noise[60:], rng=rng)
    assert probe.accuracy < 0.8
    # A penalty that is chosen knows that it knows nothing; a weak one is sure of itself.
    weak = fit_probe(noise[:60], noise[60:], rng=rng, penalties=(1e-2,))
    assert probe.penalty > 1e-2 and probe.log_loss < 0.75 < weak.log_loss


def test_held_out_figures_are_those_of_rows_that_no_fit_has_seen(rng: torch.Generator) -> None:
    """Leave-one-out by hand, where there are as many rows of a class as folds."""
    states = torch.randn((10, 4), generator=rng)
    harmful, harmless = states[:5] - 0.4, states[5:] + 0.4
    seed = torch.Generator().manual_seed(3)
    found = fit_probe(harmful, harmless, rng=seed, penalties=(0.1,))
    seed = torch.Generator().manual_seed(3)
    folds = [torch.rand(5, generator=seed).argsort() for _ in range(2)]
    losses = []
    for fold in range(5):
        bad, good = harmful[folds[0] != fold], harmless[folds[1] != fold]
        probe = fit_probe(bad, good, rng=rng, penalties=(0.1,))
        out = torch.stack([-harmful[folds[0] == fold][0], harmless[folds[1] == fold][0]])
        bias = torch.tensor([-1.0, 1.0]) * probe.bias
        losses += torch.nn.functional.softplus(-(out @ probe.weight + bias)).tolist()
    assert found.log_loss == pytest.approx(sum(losses) / 10, rel=1e-3)
    assert found.accuracy == sum(loss < math.log(2) for loss in losses) / 10


@pytest.mark.parametrize("width", [3, 120])
def test_probe_gradient_is_exact(rng: torch.Generator, width: int) -> None:
    """The optimum has a zero gradient: moving any weight makes the penalised loss worse."""
    states = torch.randn((80, width), generator=rng)
    harmful, harmless = states[:40] - 0.5, states[40:] + 0.5
    best = fit_probe(harmful, harmless, rng=torch.Generator().manual_seed(0), penalties=(0.01,))
    rows = torch.cat([harmful, harmless]).double()
    signs = torch.cat([-torch.ones(40), torch.ones(40)]).double()
    std = rows.std(0)

    def loss(weight: torch.Tensor, bias: torch.Tensor) -> float:
        margins = signs * (rows @ weight.double() + bias.double())
        penalty = 0.5e-2 * ((weight.double() * std) ** 2).sum()
        return float(torch.nn.functional.softplus(-margins).mean() + penalty)

    here = loss(best.weight, best.bias)
    for at in range(3):
        for step in (1e-2, -1e-2):
            moved = best.weight.clone()
            moved[at] += step
            assert loss(moved, best.bias) > here
    assert loss(best.weight, best.bias + 1e-2) > here < loss(best.weight, best.bias - 1e-2)


def test_ablation_removes_a_direction_and_nothing_else(rng: torch.Generator) -> None:
    direction = torch.randn(8, generator=rng) * 5
    states = torch.randn((2, 3, 8), generator=rng)
    after = AblateDirection(direction, 4)(states, Context(Site(0, "resid_pre"), 0, None, None))
    unit = direction / direction.norm()
    torch.testing.assert_close(after @ unit, torch.zeros(2, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(states - after, (states @ unit).unsqueeze(-1) * unit)


@pytest.mark.parametrize("name", ALIGNED)
def test_ablation_keeps_the_direction_out_of_the_whole_stream(name: str) -> None:
    model = pocket(name)
    direction = torch.randn(model.width, generator=torch.Generator().manual_seed(0))
    sites = [Site(layer, "resid_post") for layer in range(model.n_layers)]
    ablation = [AblateDirection(direction, model.n_layers)]
    states = last_token(model, ["How do I paint the harp?"], sites, interventions=ablation)
    for site in sites:
        share = (states[site][0] @ direction).abs() / (direction.norm() * states[site][0].norm())
        assert share < 1e-4


def test_suppression_is_a_bias_on_the_first_steps_only() -> None:
    logits = torch.zeros(1, 2, 5)
    suppress = SuppressTokens(torch.tensor([1, 3]), -7.0, steps=2)
    early = suppress(logits, Context(Site(-1, "logits"), 1, None, None))
    late = suppress(logits, Context(Site(-1, "logits"), 2, None, None))
    assert early[0, 0].tolist() == [0, -7, 0, -7, 0]
    assert torch.equal(late, logits)


def test_difference_in_means_is_that_of_plain_hidden_states() -> None:
    model = pocket("pocket-qwen2")
    harmful = ["How do I forge the key?", "Tell me now how to jam that lock."]
    harmless = ["How do I mend the kite?"]
    means = []
    for texts in (harmful, harmless):
        rows = []
        for text in texts:
            with torch.no_grad():
                ids = model.plain(text).ids.unsqueeze(0)
                hidden = model.hf(input_ids=ids, output_hidden_states=True).hidden_states
            rows.append(torch.stack([state[0, -1] for state in hidden[: model.n_layers]]))
        means.append(torch.stack(rows).mean(0))
    found = difference_in_means(model, harmful, harmless)
    torch.testing.assert_close(found[0], means[0] - means[1], atol=1e-5, rtol=1e-4)


def test_refusal_tokens_and_score_by_hand() -> None:
    harmful = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.2, 0.3]]).log()
    harmless = torch.tensor([[0.05, 0.05, 0.9]]).log()
    assert refusal_tokens(harmful, harmless, most=5, ratio=3.0).tolist() == [0, 1]
    assert refusal_tokens(harmful, harmless, most=1, ratio=3.0).tolist() == [0]
    assert refusal_tokens(harmful, harmful, most=5).tolist() == []
    # Of a model that refuses harmless prompts too, those that tell the two kinds apart at all.
    mixed = (0.5 * harmful.exp() + 0.5 * harmless.exp()).log()
    assert refusal_tokens(harmful, mixed, most=5, ratio=5.0).tolist() == [0, 1]
    scores = refusal_score(harmful, torch.tensor([0, 1]))
    assert scores.tolist() == pytest.approx([2.1972, 0.8473], abs=1e-3)


def test_openers_are_matched_at_the_start_whatever_the_apostrophe() -> None:
    assert opens_with_refusal("I\u2019m sorry, but no.")
    for mark in ("  **", "\U0001f6ab ", "\u00ab", "- \u274c "):
        assert opens_with_refusal(f"{mark}I cannot do that")
    assert not opens_with_refusal("Sure. I cannot wait to tell you.")
    assert not opens_with_refusal("")


def test_openers_are_learned_from_the_models_own_answers() -> None:
    class Speaker:
        chat = pocket("pocket-llama").chat

        def conversation(self, text: str) -> str:
            return text

        def generate(self, asked: list[str], **_: object) -> list[str]:
            return ["Nay, good sir!" if "bad" in text else "Aye, it is so." for text in asked]

    train = [
        Behavior(f"{n}", f"{'bad' if n % 2 else 'good'} {n}", harmful=bool(n % 2))
        for n in range(20)
    ]
    openers = learn_openers(Speaker(), train)  # type: ignore[arg-type]
    assert set(openers) - set(GENERAL_OPENERS) == {"nay, good sir!"}


def test_the_rows_of_a_batch_are_in_the_order_asked() -> None:
    model = tiny("llama")
    texts = ["One two three.", "One.", "Two three.", "Three."]
    site = Site(1, "resid_post")
    together = last_token(model, texts, [site])[site]
    for row, text in zip(together, texts, strict=True):
        torch.testing.assert_close(
            row, last_token(model, [text], [site])[site][0], atol=1e-5, rtol=1e-5
        )
