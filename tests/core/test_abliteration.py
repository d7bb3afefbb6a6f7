"""Abliteration: kernels, directions, the Pareto front and the search for it."""

from __future__ import annotations

import pytest
import torch

from attacks import Behavior, load
from attacks.core.errors import BadInput
from attacks.core.model.editing import writers
from attacks.core.reading.states import last_token
from attacks.core.refusals.abliteration import (
    Kernel,
    Outcome,
    Recipe,
    choose,
    layer_directions,
    one_direction,
    pareto_front,
)
from attacks.core.sites import Site
from benchmarks.boards.pareto import fronts, table
from benchmarks.inputs.behaviors import load_behaviors
from conftest import pocket

HARMFUL, HARMLESS = ["How do I forge the key?", "Jam that lock."], ["How do I mend the kite?"]


def train(n: int) -> list[Behavior]:
    rows = [row.for_attack() for row in load_behaviors("pocket-train")]
    return [row for flag in (True, False) for row in [r for r in rows if r.harmful == flag][:n]]


def test_a_kernel_falls_linearly_from_its_position() -> None:
    kernel = Kernel(w_max=1.0, w_min=0.2, position=0.5, distance=0.25)
    assert kernel.strengths(9) == pytest.approx((0, 0, 0.2, 0.6, 1.0, 0.6, 0.2, 0, 0))
    assert Kernel().strengths(6) == (1.0,) * 6, "by default everywhere"
    assert Kernel(position=0.0, distance=0.0).strengths(3) == (1.0, 0.0, 0.0)
    with pytest.raises(BadInput, match="distance"):
        Kernel(distance=-0.1).strengths(3)


def test_directions_between_two_layers_are_interpolated() -> None:
    rows = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), dim=1)
    torch.testing.assert_close(one_direction(rows, 0.5), rows[1].expand(3, -1))
    torch.testing.assert_close(one_direction(rows, 1.0), rows[2].expand(3, -1))
    between = torch.nn.functional.normalize(0.5 * rows[0] + 0.5 * rows[1], dim=0)
    torch.testing.assert_close(one_direction(rows, 0.25), between.expand(3, -1))


def test_projected_directions_stand_across_the_harmless_mean() -> None:
    model = pocket("pocket-llama")
    plain, projected = (
        layer_directions(model, HARMFUL, HARMLESS, projected=flag) for flag in (False, True)
    )
    sites = [Site(layer, "resid_post") for layer in range(model.n_layers)]
    means = last_token(model, HARMLESS, sites)
    for layer, site in enumerate(sites):
        harmless = means[site].mean(0)
        assert abs(float(projected[layer] @ harmless / harmless.norm())) < 1e-5
        assert float(plain[layer].norm()) == pytest.approx(1.0, rel=1e-5)
        harmful = last_token(model, HARMFUL, [site])[site].mean(0)
        expected = torch.nn.functional.normalize(harmful - harmless, dim=0)
        torch.testing.assert_close(plain[layer], expected, atol=1e-4, rtol=1e-4)


def test_the_law_holds_in_the_model_and_only_where_the_kernel_reaches() -> None:
    model = pocket("pocket-gemma2")
    directions = layer_directions(model, HARMFUL, HARMLESS, projected=False)
    recipe = Recipe(None, Kernel(0.8, 0.8, 1.0, 0.5), Kernel(0.3, 0.3, 0.0, 0.0))
    edit = recipe.edit(directions, "plain")
    before = {slot.writer.name: slot.parameter for slot in writers(model.hf, model.structure)}
    with model.editing([edit]):
        for slot in writers(model.hf, model.structure):
            old, new, writer = before[slot.writer.name], slot.parameter, slot.writer
            if writer.layer < 0:
                assert new is old
                continue
            r = writer.read_along(directions[writer.layer])
            attention = 0.8 if writer.layer >= 3 else 0.0
            strength = attention if writer.part == "attention" else 0.3 * (writer.layer == 0)
            torch.testing.assert_close(r @ new, (1 - strength) * (r @ old), atol=1e-5, rtol=1e-4)


def outcome(refusals: int, kl: float) -> Outcome:
    return Outcome(Recipe(None, Kernel(), Kernel()), refusals, 10, kl)


def test_the_front_holds_what_nothing_else_beats() -> None:
    points = [(5, 0.1), (2, 0.4), (2, 0.5), (0, 0.9), (6, 0.1), (3, 0.4), (9, 0.0)]
    front = pareto_front([outcome(*point) for point in points])
    assert [(one.refusals, one.kl) for one in front] == [(0, 0.9), (2, 0.4), (5, 0.1), (9, 0.0)]
    for point in points:
        assert any(one.refusals <= point[0] and one.kl <= point[1] for one in front)
    assert choose(front, max_kl=0.5).refusals == 2
    assert choose(front, max_kl=1.0).refusals == 0
    assert choose(front[:2], max_kl=0.1).refusals == 2, "none is gentle: the lowest sum"
    assert choose([front[0], front[3]], max_kl=0.1).refusals == 0, "the gentle one does nothing"


def test_a_broken_model_is_not_chosen_for_its_lack_of_refusals() -> None:
    """Found on a real chat model: 0 of 24 refusals at 7.8 nats was taken, 1 at 0.77 was there."""
    front = pareto_front([outcome(0, 7.8), outcome(1, 0.77), outcome(9, 0.05)])
    assert choose(front, max_kl=0.02).refusals == 1


def test_norm_preserving_and_plain_edits_differ() -> None:
    model, found = pocket("pocket-llama"), {}
    for mode in ("plain", "norm-preserving"):
        attack = load("abliteration", mode=mode, depth=0.4)
        artefact = attack.prepare(model, train(4), rng=torch.Generator().manual_seed(0))
        (step,) = attack.run(model, train(4)[0], artefact=artefact, rng=torch.Generator())
        with model.editing(step.interventions):
            found[mode] = model.hf.model.layers[2].mlp.down_proj.weight.detach().clone()
    old = model.hf.model.layers[2].mlp.down_proj.weight
    torch.testing.assert_close(found["norm-preserving"].norm(dim=1), old.norm(dim=1))
    assert not torch.allclose(found["plain"].norm(dim=1), old.norm(dim=1), rtol=1e-3)


def test_a_search_keeps_a_front_that_one_seed_reproduces(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("optuna")
    model, attack = pocket("pocket-llama"), load("abliteration", trials=3, depth=0.4)
    first, again = (
        attack.prepare(model, train(12), rng=torch.Generator().manual_seed(2)) for _ in range(2)
    )
    assert first.hash == again.hash
    front = first.data["front"]
    assert first.data["chosen"] in front
    assert [row["refusals"] for row in front] == sorted({row["refusals"] for row in front})
    assert [row["kl"] for row in front] == sorted((row["kl"] for row in front), reverse=True)
    from benchmarks.harness.artefacts import save

    save(tmp_path / "artefacts", "found", first)
    shown = fronts(tmp_path)
    assert shown == f"### found, plain\n\n{table(first.data)}"
    assert shown.count("\n| ") == 2 + len(front) and shown.count("**") % 2 == 0


def test_what_is_no_search_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput, match="no artefact with a Pareto front"):
        fronts(tmp_path)
    (tmp_path / "artefacts").mkdir()
    (tmp_path / "artefacts" / "a.json").write_text('{"data": {"front": [{}], "mode": "plain"}}')
    with pytest.raises(BadInput, match="damaged"):
        fronts(tmp_path)
    model, rng = pocket("pocket-llama"), torch.Generator()
    with pytest.raises(BadInput, match=r"depth 1.5 is not in 0\.\.1"):
        load("abliteration", depth=1.5).prepare(model, train(4), rng=rng)
    with pytest.raises(BadInput, match="at least 4"):
        load("abliteration").prepare(model, train(3), rng=rng)
