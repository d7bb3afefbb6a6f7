"""Attribution to layers and heads, head patching, attention to slots."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from attacks.core.analysis import attribution
from attacks.core.analysis.attribution import (
    answer_direction,
    head_attribution,
    head_patching,
    hijack_scores,
    layer_attribution,
)
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.model import Model
from attacks.core.model.families import at_path
from attacks.core.prompt import suffixed
from attacks.core.reading.states import last_token, next_token_log_probs
from attacks.core.refusals.openers import refusal_score
from attacks.core.sites import Site
from conftest import ALIGNED, pocket, tiny

TEXTS = [
    "How do I paint the harp?",
    "How do I jam the lock?",
    "Tell me, step by step, how to mend the kite.",
]
HARMFUL = ["How do I jam the lock?", "How do I forge the key?"]
HARMLESS = ["How do I paint the harp?", "Please tell me how to mend the kite."]
MODELS = [*ALIGNED, "llama", "gpt2", "gpt_neox", "olmo2", "gemma3_text", "granite"]


def model_of(name: str) -> Model:
    scaled = {"residual_multiplier": 0.5} if name == "granite" else {}
    return pocket(name) if name.startswith("pocket") else tiny(name, pad_token_id=0, **scaled)


def some_direction(model: Model) -> torch.Tensor:
    return answer_direction(model, [300, 310], [400])


def through_final_norm(model: Model, states: torch.Tensor, final: torch.Tensor) -> torch.Tensor:
    """(N, D) `states` through the final norm, the scale being that of `final`: written out."""
    norm = at_path(model.hf, model.structure.final_norm or "")
    gain = norm.weight.detach()
    if "Gemma" in type(norm).__name__:
        gain = 1 + gain
    if isinstance(norm, torch.nn.LayerNorm):
        scale = (final.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
        return gain * (states - states.mean(-1, keepdim=True)) / scale
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return gain * states / (final.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def final_states(model: Model) -> torch.Tensor:
    site = Site(model.n_layers - 1, "resid_post")
    return last_token(model, TEXTS, [site])[site]


def test_the_answer_direction_is_a_difference_of_mean_unembeddings() -> None:
    model = pocket("pocket-llama")
    table = model.hf.lm_head.weight
    direction = some_direction(model)
    torch.testing.assert_close(direction, (table[300] + table[310]) / 2 - table[400])
    assert direction.dtype == torch.float32 and not direction.requires_grad


@pytest.mark.parametrize("name", MODELS)
def test_the_last_layer_attribution_is_the_logit_difference(name: str) -> None:
    """Before what Gemma 2 does to logits; without the norm's and the unembedding's biases."""
    model = model_of(name)
    direction = answer_direction(model, [300], [400])
    scores = layer_attribution(model, TEXTS, direction)
    assert scores.shape == (model.n_layers + 1,)
    norm = at_path(model.hf, model.structure.final_norm or "")
    states = final_states(model)
    with torch.no_grad():
        normed = norm(states)
    bias = getattr(norm, "bias", None)
    if bias is not None:
        normed = normed - bias.detach()
    expected = (normed @ direction).mean()
    torch.testing.assert_close(scores[-1], expected, atol=1e-4, rtol=1e-4)


def test_the_last_layer_attribution_is_that_of_the_model_itself() -> None:
    model = pocket("pocket-llama")
    site = Site(-1, "logits")
    logits = last_token(model, TEXTS, [site])[site]
    scores = layer_attribution(model, TEXTS, answer_direction(model, [300], [400]))
    expected = (logits[:, 300] - logits[:, 400]).mean()
    torch.testing.assert_close(scores[-1], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_layer_attributions_against_the_norm_written_out(name: str) -> None:
    model = model_of(name)
    direction = some_direction(model)
    final = final_states(model)
    sites = [Site(layer, "resid_pre") for layer in range(model.n_layers)]
    states = last_token(model, TEXTS, sites)
    expected = [(through_final_norm(model, states[at], final) @ direction).mean() for at in sites]
    scores = layer_attribution(model, TEXTS, direction)
    torch.testing.assert_close(scores[:-1], torch.stack(expected), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_heads_add_up_to_the_attention_output(name: str) -> None:
    """The whole of it, with the same scale, but for biases (which only some random models have)."""
    model = model_of(name)
    direction = some_direction(model)
    final = final_states(model)
    sites = [Site(layer, "attn_out") for layer in range(model.n_layers)]
    outputs = last_token(model, TEXTS, sites)
    scores = head_attribution(model, TEXTS, direction)
    assert scores.shape == (model.n_layers, model.structure.heads)
    for layer, site in enumerate(sites):
        projection = at_path(model.hf, model.structure.module_path(layer, "z"))
        bias = getattr(projection, "bias", None)
        output = outputs[site] if bias is None else outputs[site] - bias.detach()
        expected = (through_final_norm(model, output, final) @ direction).mean()
        torch.testing.assert_close(scores[layer].sum(), expected, atol=1e-4, rtol=1e-3)


def test_head_attribution_averages_over_all_texts() -> None:
    model = pocket("pocket-llama")
    direction = some_direction(model)
    alone = torch.stack([head_attribution(model, [text], direction) for text in TEXTS])
    together = head_attribution(model, TEXTS, direction)
    torch.testing.assert_close(together, alone.mean(0), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


@pytest.mark.parametrize("name", ["pocket-llama", "pocket-gemma2"])
def test_a_head_that_writes_nothing_has_no_attribution_and_no_effect(name: str) -> None:
    """Planted: its slice of the output projection is zero; the other heads keep theirs."""
    own = pocket(name)
    model = Model(deepcopy(own.hf), own.chat.tokenizer, name="planted")
    width = model.width // model.structure.heads
    layer, head = 1, 2
    projection = at_path(model.hf, model.structure.module_path(layer, "z"))
    projection.weight.data[:, head * width : (head + 1) * width] = 0
    scores = head_attribution(model, TEXTS, some_direction(model))
    effects = head_patching(model, HARMFUL, HARMLESS, torch.tensor([300, 301]))
    for table in (scores, effects):
        assert abs(float(table[layer, head])) < 1e-5
        others = torch.cat([table[layer, :head], table[layer, head + 1 :]])
        assert (others.abs() > 1e-5).any()


def refusal_openers(model: Model) -> torch.Tensor:
    """The likeliest first token of each harmful prompt: it opens a refusal on aligned models."""
    return next_token_log_probs(model, HARMFUL).argmax(1).unique()


@pytest.mark.parametrize("name", [*ALIGNED, "gpt2"])
def test_patching_against_a_plain_hook(name: str) -> None:
    """One head at a time, whole prompts, no cache."""
    model = model_of(name)
    ids = refusal_openers(model)
    effects = head_patching(model, HARMFUL, HARMLESS, ids)
    assert effects.shape == (model.n_layers, model.structure.heads)
    high, low = (
        refusal_score(next_token_log_probs(model, texts), ids).mean()
        for texts in (HARMFUL, HARMLESS)
    )
    layer = model.n_layers - 1
    projection = at_path(model.hf, model.structure.module_path(layer, "z"))
    for head in range(model.structure.heads):
        scores = []
        for harmful, harmless in zip(HARMFUL, HARMLESS, strict=True):
            seen: list[torch.Tensor] = []
            keep = projection.register_forward_pre_hook(lambda _, args, s=seen: s.append(args[0]))
            with torch.no_grad():
                model.hf(input_ids=model.plain(harmful).ids.unsqueeze(0))
            keep.remove()
            width = seen[0].shape[-1] // model.structure.heads
            part = slice(head * width, (head + 1) * width)

            def put(module, args, donor=seen[0], part=part):  # type: ignore[no-untyped-def]
                changed = args[0].clone()
                changed[0, -1, part] = donor[0, -1, part]
                return (changed,)

            handle = projection.register_forward_pre_hook(put)
            with torch.no_grad():
                logits = model.hf(input_ids=model.plain(harmless).ids.unsqueeze(0)).logits[:, -1]
            handle.remove()
            scores.append(refusal_score(logits.float().log_softmax(1), ids))
        expected = (torch.cat(scores).mean() - low) / (high - low)
        assert float(effects[layer, head]) == pytest.approx(float(expected), abs=1e-3, rel=1e-2)


def test_patching_a_head_with_its_own_output_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pocket("pocket-llama")
    ids = refusal_openers(model)
    real = attribution.last_token
    # Donors come from the harmless prompts themselves.
    monkeypatch.setattr(
        attribution, "last_token", lambda m, _, sites, **how: real(m, HARMLESS, sites, **how)
    )
    effects = head_patching(model, HARMFUL, HARMLESS, ids)
    torch.testing.assert_close(effects, torch.zeros_like(effects), atol=1e-4, rtol=0)


def test_pairs_that_cannot_be_patched_are_refused() -> None:
    model = pocket("pocket-llama")
    ids = torch.tensor([300])
    with pytest.raises(BadInput, match="needs pairs"):
        head_patching(model, HARMFUL, HARMLESS[:1], ids)
    with pytest.raises(BadInput, match="nothing to patch"):
        head_patching(model, HARMFUL, HARMFUL, ids)


def test_families_whose_writes_are_not_known_are_refused() -> None:
    with pytest.raises(BadInput, match="OPT"):
        head_attribution(tiny("opt"), TEXTS, torch.ones(32))


@pytest.mark.parametrize("name", ALIGNED)
def test_hijack_scores_are_the_attention_of_the_last_token_to_the_slots(
    name: str, behavior: Behavior
) -> None:
    model = pocket(name)
    rng = torch.Generator().manual_seed(0)
    prompt = model.prompt(suffixed(behavior, 4), rng=rng)
    candidates = prompt.slot_ids.repeat(3, 1)
    candidates[1] = candidates[1].flip(0)
    candidates[2] = candidates[2].roll(1)
    scores = hijack_scores(model, prompt, candidates, batch_size=2)
    own = model.hf.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    with torch.no_grad():
        output = model.hf(input_ids=prompt.fill(candidates), output_attentions=True)
    model.hf.set_attn_implementation(own)
    expected = torch.stack(
        [pattern[:, :, -1, prompt.slots].sum(-1).mean(0) for pattern in output.attentions]
    )
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)
    assert (scores > 0).all() and (scores < 1).all()
    with pytest.raises(BadInput, match="slots"):
        hijack_scores(model, model.plain("Hello."), candidates)
