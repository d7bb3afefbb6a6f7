"""Massive activations: planted ones are found and avoided; plain models have none."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from attacks import Behavior, load
from attacks.core.errors import BadInput
from attacks.core.interventions import Context, Intervention
from attacks.core.model import Model
from attacks.core.prompt import POST_INSTRUCTION
from attacks.core.reading import massive
from attacks.core.reading.massive import massive_activations, massive_dimensions, winsorised
from attacks.core.refusals.directions import RefusalDirection, find_refusal_direction
from attacks.core.sites import Site
from benchmarks.inputs.behaviors import load_behaviors
from conftest import ALIGNED, pocket

Planted = tuple[Model, Tensor, str, str]
REQUESTS = [
    f"{verb} the {thing}" for verb in ("Mend", "Paint", "Tune") for thing in ("harp", "oar")
]
DIMENSION, TOKEN = 7, -2


@dataclass(frozen=True, eq=False)
class Sink(Intervention):
    """A massive value at the last token but one, which the model cannot do without.

    It depends on the prompt a little, so that a difference in means is nearly all this dimension.
    Where it is gone, the last token no longer refuses; where it is everywhere, it does: a model
    that is broken by taking the dimension out, which looks like a bypass of refusal.
    """

    refusal: Tensor

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site(1, "resid_pre"), Site(2, "resid_pre"))

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        assert ctx.roles is not None
        places = torch.arange(ctx.roles.shape[1]) * (ctx.roles == POST_INSTRUCTION)
        rows, last = torch.arange(len(places)), places.argmax(1)
        here = activation[rows, last + 1 + TOKEN]
        changed = activation.clone()
        if ctx.site.layer == 1:
            value = 400 + 100 * (here @ self.refusal).sign()
            changed[rows, last + 1 + TOKEN, DIMENSION] += value
            return changed
        spread = activation[rows, last, DIMENSION].abs() > 30
        gone = here[:, DIMENSION].abs() < 30
        changed[rows, last] += 900 * (spread.float() - gone.float()).unsqueeze(1) * self.refusal
        return changed


def with_sink(planted: Planted) -> tuple[Model, list[str], list[str]]:
    model, truth, bad, good = planted
    harmful, harmless = ([text + 4 * word for text in REQUESTS] for word in (bad, good))
    return model.changed([Sink(truth)]), harmful, harmless


def found_on(planted: Planted, **options: float) -> RefusalDirection:
    model, harmful, harmless = with_sink(planted)
    rng = torch.Generator().manual_seed(0)
    return find_refusal_direction(model, harmful, harmless, rng=rng, **options)  # type: ignore[arg-type]


def test_a_direction_is_not_read_where_a_massive_activation_rules(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = found_on(planted)
    assert {(m.position, m.layer) for m in found.massive} == {(TOKEN, 1), (TOKEN, 2)}
    assert {m.dimension for m in found.massive} == {DIMENSION}
    assert all(m.ratio > massive.RATIO and (m.ruled or 0) > 0.9 for m in found.massive)
    assert found.score.position != TOKEN
    assert torch.cosine_similarity(found.direction, planted[1], dim=0) > 0.9
    monkeypatch.setattr(massive, "RATIO", math.inf)
    naive = found_on(planted)
    assert naive.massive == ()
    assert naive.score.position == TOKEN, "the naive choice takes what breaks the model"
    assert naive.direction.abs().argmax() == DIMENSION


def test_clipped_states_have_no_massive_activations(planted: Planted) -> None:
    found = found_on(planted, winsorise=0.9)
    assert found.massive == ()
    assert {score.position for score in found.scores} >= {TOKEN}
    assert found.direction.abs().max() < 30


def test_what_was_left_out_is_in_the_artefact(planted: Planted) -> None:
    model, harmful, harmless = with_sink(planted)
    train = [
        Behavior(f"{flag}{at}", text, target="Sure", harmful=flag)
        for flag, texts in ((True, harmful), (False, harmless))
        for at, text in enumerate(texts)
    ]
    rng = torch.Generator().manual_seed(0)
    chosen = load("refusal-direction").prepare(model, train, rng=rng)
    listed = chosen.data["massive"]
    assert [(row["position"], row["layer"]) for row in listed] == [(TOKEN, 1), (TOKEN, 2)]
    assert (chosen.data["position"], chosen.data["layer"]) not in {(TOKEN, 1), (TOKEN, 2)}
    asked = load("refusal-direction", layer=2, position=TOKEN).prepare(model, train, rng=rng)
    assert [row["dimension"] for row in asked.data["massive"]] == [DIMENSION]
    plain = load("refusal-direction", layer=2, position=-1).prepare(model, train, rng=rng)
    assert plain.data["massive"] == []


def test_where_nothing_else_is_left_it_is_read_there_and_said(planted: Planted) -> None:
    model, harmful, _ = with_sink(planted)
    states = torch.randn(4, 1, 3, 32, generator=torch.Generator().manual_seed(0))
    states[..., DIMENSION] = 500.0
    lower = states.clone()
    lower[..., DIMENSION] = 300.0
    difference = (states - lower).mean(0)
    ids = model.plain(harmful[0]).ids
    kept, left_out = massive.set_aside(model, difference, [states, lower], ids, depth=0.8)
    assert torch.equal(kept, difference)
    assert [report.layer for report in left_out] == [0, 1, 2]
    lower[:, :, 1] = states[:, :, 1] - 1.0
    difference = (states - lower).mean(0)
    kept, left_out = massive.set_aside(model, difference, [states, lower], ids, depth=0.8)
    assert kept[0, 1].any() and not kept[0, 0].any() and not kept[0, 2].any()
    assert [report.layer for report in left_out] == [0, 2]


@pytest.mark.parametrize("name", ALIGNED)
def test_plain_pocket_models_have_none(name: str) -> None:
    texts = [row.text for row in load_behaviors("pocket-train")][:16]
    assert massive_activations(pocket(name), texts) == []


def test_a_massive_value_is_both_large_and_most_of_the_norm() -> None:
    rng = torch.Generator().manual_seed(0)
    states = torch.randn(8, 512, generator=rng)
    assert not massive_dimensions(states).any()
    states[:, 3] = 50.0
    assert not massive_dimensions(states).any(), "an outlier, 75 times the median"
    states[:, 3] = -200.0
    assert massive_dimensions(states).nonzero().tolist() == [[3]]
    wide = torch.randn(2, 200_000, generator=rng)
    wide[:, 3] = 200.0
    assert not massive_dimensions(wide).any(), "hardly any of the norm"


def test_clipping_cuts_magnitudes_at_a_quantile_of_each_state() -> None:
    states = torch.tensor([[1.0, -2.0, 3.0, -400.0, 5.0], [0.1, 0.2, 0.3, 0.4, -0.5]])
    clipped = winsorised(states, 0.75)
    assert clipped.tolist()[0] == [1, -2, 3, -5, 5]
    torch.testing.assert_close(clipped[1], torch.tensor([0.1, 0.2, 0.3, 0.4, -0.4]))
    assert winsorised(states, 1.0) is states
    with pytest.raises(BadInput, match="quantile"):
        winsorised(states, 0.0)
