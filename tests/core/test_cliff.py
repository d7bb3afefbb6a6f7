"""Cliffs on hand-made curves, curves of a model against plain passes, and what heads write."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from attacks import load
from attacks.core.analysis.attribution import head_projections
from attacks.core.analysis.cliff import (
    Cliff,
    aligned_mean,
    lens_curves,
    measure_cliff,
    rank,
    refusal_curves,
    refusal_probes,
    resample,
)
from attacks.core.analysis.heads import sides, strongest, traced_for_refusal, written_for_refusal
from attacks.core.analysis.transcripts import Transcript
from attacks.core.errors import BadInput
from attacks.core.interventions import Context, ScaleHeads
from attacks.core.model import Model
from attacks.core.model.families import at_path
from attacks.core.reading.probes import Probe
from attacks.core.reading.states import last_of
from attacks.core.sites import Site
from benchmarks.inputs.behaviors import load_behaviors
from conftest import ALIGNED, pocket, tiny

TEXTS = ["How do I paint the harp?", "How do I jam the lock?", "Tell me how to mend the kite."]


def transcripts(model: Model) -> list[Transcript]:
    """As if the last 5 tokens of each prompt closed what was thought in the 4 before."""
    found = []
    for index, text in enumerate(TEXTS * 2):
        ids = model.plain(text).ids
        found.append(Transcript(ids, len(ids) - 9, 5, harmful=True, refused=index % 3 == 1))
    return found


# The metrics -------------------------------------------------------------------------------------


def test_a_plateau_that_falls_at_the_end_is_a_cliff() -> None:
    curve = torch.tensor([0.2, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.7, 0.1, 0.05])
    cliff = measure_cliff(curve, 3)
    assert cliff.plateau == pytest.approx((0.2 + 0.6 + 6 * 0.8) / 8)
    assert cliff.robust == pytest.approx(0.8)
    assert cliff.final == pytest.approx(0.05)
    assert cliff.drop == pytest.approx(0.7 - 0.05)
    assert cliff.relative == pytest.approx(0.65 / 0.7)
    assert cliff.position == -2


def test_a_flat_curve_has_none() -> None:
    cliff = measure_cliff(torch.full((12,), 0.4), 3)
    assert (cliff.drop, cliff.relative) == (pytest.approx(0), pytest.approx(0))


def test_a_fall_early_in_the_thinking_is_not_the_place() -> None:
    curve = torch.tensor([1.0, 0.0, *[0.5] * 20, 0.4, 0.3, 0.1])
    assert measure_cliff(curve, 3).position == -1


def test_an_empty_plateau_divides_by_no_zero_and_nothing_thought_is_refused() -> None:
    assert measure_cliff(torch.tensor([0.0, 0.0, 0.5]), 1).relative < 0
    for length, closing in ((3, 3), (5, 0)):
        with pytest.raises(BadInput, match="tokens that were thought"):
            measure_cliff(torch.rand(length), closing)


def test_the_two_rankings() -> None:
    high_and_falls = Cliff(0.9, 0.9, 0.3, 0.6, 0.67, -1)
    low_throughout = Cliff(0.1, 0.1, 0.1, 0.0, 0.0, -1)
    assert rank([low_throughout, high_and_falls], "cliff") == [1, 0]
    assert rank([low_throughout, high_and_falls], "final") == [0, 1]


def test_curves_are_aligned_at_their_ends_and_missing_values_do_not_count() -> None:
    mean, count = aligned_mean([torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.7, 0.3])])
    torch.testing.assert_close(mean, torch.tensor([0.9, 0.6, 0.2]))
    assert count.tolist() == [1, 2, 2]


def test_resampling_keeps_ends_shape_and_range() -> None:
    line = resample(torch.linspace(0.2, 0.8, 7))
    torch.testing.assert_close(line, torch.linspace(0.2, 0.8, 100), atol=1e-5, rtol=0)
    steep = resample(torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert len(steep) == 100 and steep.min() == 0 and steep.max() == 1
    assert resample(torch.tensor([0.3, 0.4]), 3).tolist() == pytest.approx([0.3, 0.35, 0.4])


# Curves of a model -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pocket-llama", "pocket-gemma2"])
def test_curves_are_the_probe_at_each_position(name: str) -> None:
    model = pocket(name)
    rows = transcripts(model)[:2]
    probes = {
        layer: Probe(torch.randn(model.width) / 9, torch.tensor(0.1), 1.0, 0.0, 0.01)
        for layer in (1, 4)
    }
    for row, curves in zip(rows, refusal_curves(model, rows, probes), strict=True):
        with torch.no_grad():
            hidden = model.hf(row.ids.unsqueeze(0), output_hidden_states=True).hidden_states
        for layer, probe in probes.items():
            states = hidden[layer + 1][0, row.start :]
            expected = (states @ probe.weight + probe.bias).sigmoid()
            torch.testing.assert_close(curves[layer], expected, atol=1e-4, rtol=1e-4)
            assert len(curves[layer]) == 9


def test_the_lens_of_the_last_layer_is_the_model_itself() -> None:
    model = pocket("pocket-llama")
    rows, refuse, accept = transcripts(model)[:2], torch.tensor([300, 301]), torch.tensor([400])
    last = model.n_layers - 1
    for row, curves in zip(rows, lens_curves(model, rows, [last], refuse, accept), strict=True):
        with torch.no_grad():
            chances = model.hf(row.ids.unsqueeze(0)).logits[0, row.start :].softmax(1)
        no, yes = chances[:, refuse].sum(1), chances[:, accept].sum(1)
        torch.testing.assert_close(curves[last], no / (no + yes), atol=1e-4, rtol=1e-3)
    with pytest.raises(BadInput, match="open refusals"):
        lens_curves(model, rows, [last], refuse[:0], accept)


def test_probes_need_both_kinds() -> None:
    model = pocket("pocket-llama")
    rows, rng = transcripts(model), torch.Generator().manual_seed(0)
    with pytest.raises(BadInput, match="got 2 and 4"):
        refusal_probes(model, rows[1::3], rows[::3] * 2, [2], rng=rng)
    fitted = refusal_probes(model, rows[1::3] * 4, rows[::3] * 4, [2], rng=rng)
    curves = refusal_curves(model, [rows[1], rows[0]], fitted)
    assert curves[0][2][-1] > 0.5 > curves[1][2][-1]


# Heads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ALIGNED[:1], "gpt2"])
def test_projections_against_the_output_projection_written_out(name: str) -> None:
    model = pocket(name) if name.startswith("pocket") else tiny(name, pad_token_id=0)
    axis = torch.randn(model.width, generator=torch.Generator().manual_seed(1))
    ids = [row.ids for row in transcripts(model)[:3]]
    found = head_projections(model, ids, axis)
    sites = [Site(layer, "z") for layer in range(model.n_layers)]
    states = last_of(model, ids, sites)
    for site in sites:
        projection = at_path(model.hf, model.structure.module_path(site.layer, "z"))
        bias = getattr(projection, "bias", None)
        for head in range(model.structure.heads):
            alone = torch.zeros_like(states[site])
            alone[:, head] = states[site][:, head]
            with torch.no_grad():
                output = projection(alone.flatten(1))
            output = output if bias is None else output - bias.detach()
            expected = (output @ axis / axis.norm()).mean()
            assert float(found[site.layer, head]) == pytest.approx(float(expected), abs=1e-4)


def test_a_head_planted_against_the_axis_comes_first() -> None:
    own = pocket("pocket-llama")
    model = Model(deepcopy(own.hf), own.chat.tokenizer, name="planted")
    rows, layer, head = transcripts(model), 3, 2
    axis = torch.randn(model.width, generator=torch.Generator().manual_seed(2))
    width = model.width // model.structure.heads
    z = last_of(model, [row.ids for row in rows], [Site(layer, "z")])[Site(layer, "z")][:, head]
    projection = at_path(model.hf, model.structure.module_path(layer, "z"))
    # Whatever the head attends to, it writes 5 against the axis where its output is its mean.
    weights = -5 * torch.outer(axis / axis.norm(), z.mean(0) / z.mean(0).square().sum())
    projection.weight.data[:, head * width : (head + 1) * width] = weights
    written = written_for_refusal(model, rows, axis)
    assert float(written[layer, head]) == pytest.approx(-5, rel=1e-3)
    assert strongest(written, 1, against=True) == ((layer, head),)
    assert (layer, head) not in strongest(written, 20)
    traced = traced_for_refusal(model, rows, axis, layer)
    assert strongest(traced, 1, against=True) == ((layer, head),)
    # The MLP of the same block answers to what is written.
    assert float(traced[layer, head]) == pytest.approx(-5, rel=0.2)
    assert not traced[layer + 1 :].any()


@pytest.mark.parametrize("name", ["pocket-llama", "pocket-gemma2"])
def test_ablated_heads_are_zero_in_traces_and_answers_and_hooks_come_off(name: str) -> None:
    model = pocket(name)
    ids = model.plain(TEXTS[0]).ids.unsqueeze(0)
    change = ScaleHeads(((1, 0), (1, 3), (4, 2)))
    with torch.no_grad():
        before = model.hf(input_ids=ids).logits
    sites = [Site(layer, "z", (0, -1)).at(ids.shape[1]) for layer in (1, 2, 4)]
    with torch.no_grad():
        trace = model.trace(ids, sites, interventions=[change])
    for site in sites:
        zero = (trace[site] == 0).all(-1).all(1)[0].tolist()
        assert zero == [(site.layer, head) in change.heads for head in range(4)]
    # Answers go through plain hooks: compare with projections whose columns are zero.
    width = model.hf.get_submodule(model.structure.module_path(1, "z")).in_features // 4
    planted = Model(deepcopy(model.hf), model.chat.tokenizer, name="planted")
    for layer, head in change.heads:
        projection = at_path(planted.hf, planted.structure.module_path(layer, "z"))
        projection.weight.data[:, head * width : (head + 1) * width] = 0
    asked = [model.conversation(text) for text in TEXTS]
    changed = model.generate(asked, max_new_tokens=12, interventions=[change])
    assert changed == planted.generate(asked, max_new_tokens=12)
    with torch.no_grad():
        assert torch.equal(model.hf(input_ids=ids).logits, before)


def test_scaling_with_and_without_the_norm() -> None:
    z = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(3))
    context = Context(Site(1, "z"), 0, None, None)
    half = ScaleHeads(((1, 0), (2, 1)), 0.5)(z, context)
    torch.testing.assert_close(half[:, :, 0], z[:, :, 0] / 2)
    assert torch.equal(half[:, :, 1:], z[:, :, 1:])
    kept = ScaleHeads(((1, 0),), 0.0, keep_norm=True)(z, context)
    assert not kept[:, :, 0].any()
    torch.testing.assert_close(kept.flatten(2).norm(dim=-1), z.flatten(2).norm(dim=-1))
    ratio = kept[:, :, 1:] / z[:, :, 1:]
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio))
    assert (ratio > 1).all()
    none = ScaleHeads(tuple((1, head) for head in range(4)), 0.0, keep_norm=True)(z, context)
    assert not none.any()


# The attack --------------------------------------------------------------------------------------


def test_given_heads_are_taken_and_others_refused() -> None:
    model, rng = pocket("pocket-llama"), torch.Generator().manual_seed(0)
    behavior = load_behaviors("pocket-test")[0].for_attack()
    attack = load("head-ablation", heads=[[1, 2]], gamma=0.1)
    artefact = attack.prepare(model, [], rng=rng)
    (step,) = attack.run(model, behavior, artefact=artefact, rng=rng)
    (change,) = step.interventions
    assert (change.heads, change.gamma) == (((1, 2),), 0.1)  # type: ignore[attr-defined]
    for params, reason in [
        ({"heads": [[6, 0]]}, r"head \(6, 0\)"),
        ({"layer": 6}, "layer 6"),
        ({"share": 0.0}, "share 0.0"),
        ({}, "at least|need 4"),
    ]:
        with pytest.raises(BadInput, match=reason):
            load("head-ablation", **params).prepare(model, [], rng=rng)


def test_where_nothing_was_refused_harm_decides() -> None:
    rows = [
        Transcript(torch.zeros(1), 0, 0, harmful=harmful, refused=False)
        for harmful in [True, False] * 4
    ]
    first, second = sides(rows, least=4)
    assert all(row.harmful for row in first) and not any(row.harmful for row in second)
    with pytest.raises(BadInput, match="got 2 and 2"):
        sides(rows[:4], least=4)
