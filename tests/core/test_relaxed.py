"""Projections of relaxed tokens, and the search that uses them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attacks.attack import Behavior
from attacks.core.artefact import EMPTY
from attacks.core.errors import BadInput
from attacks.core.objectives import TargetCrossEntropy
from attacks.core.prompt import suffixed
from attacks.core.search import Evaluator, RelaxedSearch
from attacks.core.search.relaxed import relaxed_gradient, surviving
from attacks.core.search.simplex import gini, project_simplex, sharpen
from conftest import ALIGNED, pocket, tiny

SEARCH = {
    "steps": 5,
    "rate": 0.11,
    "peak": 0.325,
    "warm_up": 2,
    "cycle": 3,
    "sharpness": 0.4,
    "anneal": 2,
    "clip": 20.0,
    "patience": 1,
}


def rows(rng: torch.Generator, scale: float, shape: tuple[int, int] = (12, 5)) -> torch.Tensor:
    return scale * torch.randn(shape, generator=rng)


def nearest(row: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """The point of the simplex nearest to `row` (V,), by trying every support.

    On the right support it is `row` shifted to sum to 1; any other gives a point further away.
    """
    free, best, shortest = allowed.nonzero().squeeze(1).tolist(), torch.empty(0), float("inf")
    for size in range(1, len(free) + 1):
        for support in itertools.combinations(free, size):
            point = torch.zeros_like(row)
            chosen = list(support)
            point[chosen] = row[chosen] - (row[chosen].sum() - 1) / size
            distance = float((point - row).norm())
            if (point >= 0).all() and distance < shortest:
                best, shortest = point, distance
    return best


@pytest.mark.parametrize("scale", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("banned", [(), (1, 3)])
def test_the_projection_is_the_nearest_point_of_the_simplex(
    scale: float, banned: tuple[int, ...], rng: torch.Generator
) -> None:
    allowed = torch.ones(5, dtype=torch.bool)
    allowed[list(banned)] = False
    given = rows(rng, scale)
    projected = project_simplex(given, allowed)
    assert (projected >= 0).all() and (projected[:, ~allowed] == 0).all()
    torch.testing.assert_close(projected.sum(1), torch.ones(len(given)), atol=1e-5, rtol=0)
    again = project_simplex(projected, allowed)
    torch.testing.assert_close(again, projected, atol=1e-6, rtol=0)
    expected = torch.stack([nearest(row, allowed) for row in given.double()])
    torch.testing.assert_close(projected.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [0.1, 0.4, 0.8])
def test_sharpening_reaches_the_ceiling_or_at_least_goes_there(
    factor: float, rng: torch.Generator
) -> None:
    """Exactly, where the push stays on the simplex; elsewhere the index only falls."""
    weights = project_simplex(rows(rng, 0.3, (200, 8)), torch.ones(8, dtype=torch.bool))
    size = (weights > 0).sum(1)
    ceiling = (1 - factor) * (size - 1) / size
    sharp = sharpen(weights, factor)
    above = gini(weights) > ceiling + 1e-6
    assert int(above.sum()) > 20
    assert torch.equal(sharp[~above], weights[~above])
    torch.testing.assert_close(sharp.sum(1), torch.ones(200), atol=1e-5, rtol=0)
    assert (sharp >= 0).all() and (gini(sharp) <= gini(weights) + 1e-5).all()
    assert ((sharp > 0) <= (weights > 0)).all(), "what is zero stays zero"
    inside = above & ((sharp > 0).sum(1) == size)
    assert int(inside.sum()) > 5
    torch.testing.assert_close(gini(sharp)[inside], ceiling[inside], atol=1e-5, rtol=0)
    for _ in range(50):
        sharp = sharpen(sharp, factor)
    assert (gini(sharp) <= (1 - factor) * 7 / 8 + 1e-3).all()


def test_sharpening_leaves_corners_and_centres_alone() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    assert torch.equal(sharpen(weights, 0.5), weights)
    flat = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    assert torch.equal(sharpen(flat, 0.0), flat)


def evaluator(name: str, behavior: Behavior, dtype: str = "float32") -> Evaluator:
    model = pocket(name, dtype)
    rng = torch.Generator().manual_seed(1)
    prompt = model.prompt(suffixed(behavior, 4), target=behavior.target, rng=rng)
    return Evaluator(model, prompt, TargetCrossEntropy().bind(model, prompt, EMPTY))


@pytest.mark.parametrize("name", ALIGNED)
def test_the_gradient_equals_finite_differences(name: str, behavior: Behavior) -> None:
    """Also along directions that leave the simplex, where the rescaling counts."""
    work = evaluator(name, behavior, "float64")
    rng = torch.Generator().manual_seed(4)
    size = len(work.model.chat.allowed)
    weights = torch.rand((4, size), generator=rng, dtype=torch.float64) ** 8
    weights /= weights.sum(1, keepdim=True)
    _, gradient = relaxed_gradient(work, weights)
    for _ in range(3):
        direction = torch.rand((4, size), generator=rng, dtype=torch.float64) * weights
        step = 1e-2
        above, below = (relaxed_gradient(work, weights + h * direction)[0] for h in (step, -step))
        analytic = float((gradient * direction).sum())
        assert (above - below) / (2 * step) == pytest.approx(analytic, rel=2e-2, abs=1e-5)


def test_the_relaxed_loss_of_one_hot_rows_is_that_of_their_tokens(behavior: Behavior) -> None:
    work = evaluator("pocket-gemma2", behavior)
    ids = work.prompt.slot_ids
    weights = torch.nn.functional.one_hot(ids, len(work.model.chat.allowed)).float()
    loss, gradient = relaxed_gradient(work, weights)
    assert loss == pytest.approx(float(work.losses(ids.unsqueeze(0))), rel=1e-4)
    # The rescaling takes the part along the row out of the gradient of the one-hot rows.
    plain, _ = work.gradient(ids)
    expected = plain - plain.gather(1, ids.unsqueeze(1))
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-3)


def test_flops_are_those_of_the_flop_counter(behavior: Behavior) -> None:
    """The way through the embedding table included."""
    model = tiny("llama")
    prompt = model.prompt(suffixed(behavior, 4), target="Sure", rng=torch.Generator())
    work = Evaluator(model, prompt, TargetCrossEntropy().bind(model, prompt, EMPTY))
    size = len(model.chat.allowed)
    before = model.meter.snapshot()
    with FlopCounterMode(display=False) as counter:
        relaxed_gradient(work, torch.full((4, size), 1 / size))
    flops = (model.meter.snapshot() - before).flops
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_schedules_are_those_of_the_authors() -> None:
    search = RelaxedSearch(5000, 0.11, 0.325, 100, 60, 0.4, 250, 20.0, 100)
    rates = [search.learning_rate(step) for step in range(300)]
    assert rates[:101] == pytest.approx([0.11] * 101)
    assert rates[130] == pytest.approx((0.11 + 0.325) / 2)
    assert 0.32 < rates[159] < 0.325 and rates[160] == pytest.approx(0.11)
    assert rates[101:160] == sorted(rates[101:160])
    apart = [search.factor(step, relaxed=1.0, discrete=4.0) for step in range(300)]
    assert apart[49] == pytest.approx(0.4 * 50 / 250 * 0.11 / 0.325)
    assert apart[280] == pytest.approx(0.4 * 0.11 / 0.325)
    x = 0.05 / 0.9
    held = search.factor(280, relaxed=0.95, discrete=1.0) / apart[280]
    assert held == pytest.approx(1 / (1 + (1 / x - 1) ** 2))
    assert search.factor(280, relaxed=2.0, discrete=1.0) == 0


def test_what_is_handed_over_survives_and_holds_no_forbidden_token(behavior: Behavior) -> None:
    work = evaluator("pocket-llama", behavior)
    chat = work.model.chat
    search = RelaxedSearch(**{**SEARCH, "steps": 12})  # type: ignore[arg-type]
    *_, found = search.run(work.model, work.prompt, work, rng=torch.Generator().manual_seed(0))
    assert chat.allowed[found.ids].all()
    assert chat.survives(work.prompt, found.ids).all()
    assert torch.equal(found.losses, found.losses.sort().values)
    torch.testing.assert_close(work.losses(found.ids), found.losses, atol=2e-5, rtol=1e-4)
    weights = found.state["weights"]
    assert isinstance(weights, torch.Tensor) and (weights[:, ~chat.allowed] == 0).all()


def test_a_filling_is_tokenised_anew_until_it_survives(
    behavior: Behavior, rng: torch.Generator
) -> None:
    work = evaluator("pocket-llama", behavior)
    model, prompt = work.model, work.prompt
    choices = model.chat.allowed.nonzero().squeeze(1)
    drawn = choices[torch.randint(len(choices), (60, 4), generator=rng)]
    survives = model.chat.survives(prompt, drawn)
    repaired = [surviving(model, prompt, row) for row in drawn]
    for row, ok, found in zip(drawn, survives, repaired, strict=True):
        if ok:
            assert found is not None and torch.equal(found, row)
        elif found is not None:
            assert model.chat.survives(prompt, found.unsqueeze(0)).all()
    assert sum(found is not None for found in repaired) > int(survives.sum())


def test_going_on_from_a_checkpoint_is_bit_identical(behavior: Behavior) -> None:
    work = evaluator("pocket-llama", behavior)
    search = RelaxedSearch(**SEARCH)  # type: ignore[arg-type]

    def run(state=None):  # type: ignore[no-untyped-def]
        rng = torch.Generator().manual_seed(7)
        return list(search.run(work.model, work.prompt, work, rng=rng, state=state))

    whole = run()
    rest = run(whole[1].state)
    assert len(whole) == 5 and len(rest) == 3
    for one, other in [*zip(whole[2:], rest, strict=True), *zip(whole, run(), strict=True)]:
        assert torch.equal(one.ids, other.ids) and torch.equal(one.losses, other.losses)
        assert torch.equal(one.state["weights"], other.state["weights"])  # type: ignore[arg-type]


def test_after_too_many_steps_without_success_it_goes_back_to_the_best(behavior: Behavior) -> None:
    work = evaluator("pocket-llama", behavior)
    # So small a rate that the weights, drawn at random, never change the tokens read off.
    search = RelaxedSearch(**{**SEARCH, "rate": 1e-9, "peak": 1e-9, "sharpness": 0.0, "steps": 3})  # type: ignore[arg-type]
    *_, found = search.run(work.model, work.prompt, work, rng=torch.Generator().manual_seed(0))
    weights = found.state["weights"]
    assert isinstance(weights, torch.Tensor)
    assert torch.equal(weights.argmax(1), found.ids[0]) and (weights.max(1).values == 1).all()


def test_numbers_that_make_no_sense_are_refused() -> None:
    for field, value in [("steps", 0), ("patience", 0), ("rate", 0.0), ("sharpness", 1.5)]:
        with pytest.raises(BadInput, match=field):
            RelaxedSearch(**{**SEARCH, field: value})  # type: ignore[arg-type]
