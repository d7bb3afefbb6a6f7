"""Refusal and harmfulness directions: planted truth, filters, and what adding one does."""

from __future__ import annotations

from math import exp

import pytest
import torch

from attacks import Behavior, load
from attacks.core.errors import BadInput
from attacks.core.interventions import AddDirection, Context
from attacks.core.model import Model
from attacks.core.objectives import SteeringLoss
from attacks.core.prompt import GENERATED, INSTRUCTION, POST_INSTRUCTION, SYSTEM, suffixed
from attacks.core.reading.states import at_last_instruction, read, tail
from attacks.core.refusals.choice import DirectionScore, choose_direction
from attacks.core.refusals.directions import (
    difference_in_means,
    find_refusal_direction,
    score_directions,
)
from attacks.core.refusals.harmfulness import harm_directions, two_directions
from attacks.core.sites import Site
from conftest import ALIGNED, pocket, tiny

Planted = tuple[Model, torch.Tensor, str, str]
REQUESTS = [
    f"{verb} the {thing}" for verb in ("Mend", "Paint", "Tune") for thing in ("harp", "oar")
]


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.cosine_similarity(one, other, dim=0))


def test_a_planted_direction_is_found_at_every_position_and_layer(planted: Planted) -> None:
    model, truth, bad, good = planted
    harmful, harmless = ([text + 4 * word for text in REQUESTS] for word in (bad, good))
    rng = torch.Generator().manual_seed(0)
    found = find_refusal_direction(model, harmful, harmless, rng=rng)
    assert cosine(found.direction, truth) > 0.99
    positions = tail([model.plain(text) for text in harmful])
    assert positions > 1
    places = {(score.position, score.layer) for score in found.scores}
    assert {position for position, _ in places} == set(range(-positions, 0))
    assert {layer for _, layer in places} == {1, 2}, "at layer 0 all prompts share the token"
    assert found.refused > 0 > found.answered
    at = model.plain(harmful[0]).ids[found.score.position]
    assert found.token == model.chat.decode([[int(at)]])[0]


def test_the_planted_direction_scores_as_what_it_is(planted: Planted) -> None:
    model, truth, bad, good = planted
    harmful, harmless = ([text + 4 * word for text in REQUESTS] for word in (bad, good))
    other = torch.randn(model.width, generator=torch.Generator().manual_seed(0))
    other -= (other @ truth) * truth
    refusal = model.hf.lm_head.weight.abs().sum(1).argmax().unsqueeze(0)
    nothing = torch.zeros(model.width)
    rows = torch.stack([torch.stack([nothing, truth, other])])
    scores = score_directions(model, rows, harmful, harmless, refusal)
    assert [(score.position, score.layer) for score in scores] == [(-1, 1), (-1, 2)]
    by_truth, by_other = scores
    assert by_truth.bypass < 0 < by_truth.induce and by_truth.kl < 1e-4
    assert by_other.bypass > 0 > by_other.induce


def test_harmfulness_and_refusal_are_read_at_two_tokens(planted: Planted) -> None:
    model, truth, bad, good = planted
    harmful, harmless = ([text + 4 * word for text in REQUESTS] for word in (bad, good))
    found = two_directions(model, harmful, harmless)
    counts = (found.refused_harmful, found.answered_harmful)
    assert counts == (len(REQUESTS), 0)
    assert (found.refused_harmless, found.answered_harmless) == (0, len(REQUESTS))
    assert cosine(found.harmfulness[0], truth) > 0.99, "the request's last token is the planted one"
    assert found.refusal[0].norm() < 1e-5, "the template's last token is not"
    assert cosine(found.harmfulness[2], truth) > 0.99
    assert cosine(found.refusal[2], truth) > 0.99
    raw = difference_in_means(model, harmful, harmless)[0]
    torch.testing.assert_close(found.refusal, raw, atol=1e-5, rtol=1e-4)


def scored(*rows: tuple[int, float, float, float]) -> list[DirectionScore]:
    """With all prompts alike, so that the share of refusals left follows from the mean score."""
    return [DirectionScore(-1, *row, left=1 / (1 + exp(-row[1]))) for row in rows]


@pytest.mark.parametrize(
    ("rows", "layer", "given_up"),
    [
        # Layer, bypass, KL, induce; 10 layers, so those from 8 on are too deep.
        (
            [(1, -1, 0.0, 1), (2, -2, 0.05, 1), (3, -9, 0.5, 1), (4, -9, 0, -1), (8, -9, 0, 1)],
            2,
            (),
        ),
        # None passes all: the lowest sum of refusals left and KL, whatever it does not pass.
        ([(1, 3, 0.0, 1), (3, -4, 0.5, 1), (4, -9, 0.0, -1)], 4, ("induce",)),
        ([(1, -9, 0.5, -1), (2, -9, 0.2, -1), (3, -9, 0.3, -1)], 2, ("kl", "induce")),
        ([(1, 3, 0.0, 1), (3, -4, 0.5, -1), (9, -3, 0.0, 1)], 9, ("depth",)),
        ([(1, 3, 0.0, 1), (9, -9, 0.5, -1)], 9, ("depth", "kl", "induce")),
        # A model that is broken refuses nothing: 5.7 nats is no price for that.
        ([(1, 3, 0.0, 1), (2, -9, 5.7, 1), (3, -1, 0.6, -1)], 3, ("kl", "induce")),
        ([(8, 3, 0.0, 1), (9, 1, 0.0, 1)], 9, ("depth",)),
    ],
)
def test_the_filters_choose_or_else_a_trade_off(
    rows: list[tuple[int, float, float, float]], layer: int, given_up: tuple[str, ...]
) -> None:
    best, gone = choose_direction(scored(*rows), 10, max_kl=0.1)
    assert (best.layer, gone) == (layer, given_up)


@pytest.mark.parametrize(
    ("rows", "layer", "given_up"),
    [
        # What undoes refusal best is not what induces it best; one that only induces is left out,
        # and so is one that is too deep.
        ([(1, -9, 0.0, 1), (2, -1, 0.5, 3), (3, 1, 0.0, 5), (8, -9, 0.0, 7)], 2, ()),
        ([(1, 2, 0.0, 1), (2, 1, 0.0, 3), (9, 1, 0.0, 5)], 2, ("bypass",)),
        ([(1, -2, 0.0, -1), (2, 1, 0.0, 3)], 2, ("bypass",)),
        ([(8, 2, 0.0, 1), (9, 1, 0.0, -1)], 8, ("depth", "bypass")),
    ],
)
def test_what_is_to_induce_refusal_is_chosen_for_that(
    rows: list[tuple[int, float, float, float]], layer: int, given_up: tuple[str, ...]
) -> None:
    best, gone = choose_direction(scored(*rows), 10, max_kl=0.1, purpose="induce")
    assert (best.layer, gone) == (layer, given_up)


def test_depth_is_a_share_of_the_layers_and_not_a_whole_number_of_them() -> None:
    """0.8 of 6 layers is 4.8, and of 5 it is 4."""
    rows = scored((3, -1, 0.0, 1), (4, -2, 0.0, 1), (5, -3, 0.0, 1))
    assert choose_direction(rows, 6, max_kl=0.1)[0].layer == 4
    assert choose_direction(rows, 5, max_kl=0.1)[0].layer == 3


def test_the_bound_on_induced_refusal_is_the_models_own() -> None:
    rows = scored((3, -4, 0.0, -1), (5, -9, 0.0, -3), (8, -5, 0.0, 1))
    assert choose_direction(rows, 10, max_kl=0.1, least=-2.0) == (rows[0], ())
    assert choose_direction(rows, 10, max_kl=0.1) == (rows[1], ("induce",))


def test_a_model_unsure_of_its_refusals_first_words_has_directions_that_induce_them() -> None:
    """The score of pocket-qwen2's own refusals is hardly over 0, and that of answers far under."""
    from benchmarks.inputs.behaviors import load_behaviors

    model = pocket("pocket-qwen2")
    rows = load_behaviors("pocket-train")
    some = ([row.text for row in rows if row.harmful == flag][:40] for flag in (True, False))
    found = find_refusal_direction(model, *some, rng=torch.Generator().manual_seed(0))
    assert 0 < found.refused < 1 and found.answered < -5
    assert found.given_up == ("kl",)
    halfway = (found.refused + found.answered) / 2
    fit = [score for score in found.scores if score.layer < 4.8 and score.induce >= halfway]
    assert found.score == min(fit, key=lambda score: score.bypass)
    assert found.score.induce < 0, "the paper's bound leaves it out"


def test_without_a_difference_there_is_no_direction() -> None:
    with pytest.raises(BadInput, match="same states"):
        choose_direction([], 10, max_kl=0.1)


def test_a_direction_is_added_where_and_when_it_should_be() -> None:
    direction, site = torch.tensor([1.0, -2.0]), Site(1, "resid_pre")
    roles = torch.tensor([[SYSTEM, INSTRUCTION, INSTRUCTION, INSTRUCTION, POST_INSTRUCTION]])
    prompt = Context(site, 0, roles, None)
    later = Context(site, 1, torch.tensor([[GENERATED]]), None)
    zeros = torch.zeros(1, 5, 2)

    def added(change: AddDirection, ctx: Context = prompt) -> list[float]:
        return change(zeros[:, : 5 if ctx is prompt else 1], ctx)[0, :, 0].tolist()

    assert added(AddDirection(direction, 1, 3.0)) == [3, 3, 3, 3, 3]
    assert added(AddDirection(direction, 1, 3.0), later) == [3]
    assert added(AddDirection(direction, 1, 3.0, prompt_only=True), later) == [0]
    only = AddDirection(direction, 1, -1.0, (INSTRUCTION,))
    assert added(only) == [0, -1, -1, -1, 0] and added(only, later) == [0]
    assert added(AddDirection(direction, 1, 1.0, (INSTRUCTION,), spare=2)) == [0, 1, 0, 0, 0]
    assert torch.equal(zeros, torch.zeros(1, 5, 2))
    with pytest.raises(BadInput, match="roles"):
        only(zeros, Context(site, 0, None, None))


def test_prompts_of_unlike_length_are_read_as_they_are_alone() -> None:
    model = tiny("qwen2")
    texts = ["One two three, four.", "One.", "Two three?"]
    sites = [Site(1, "resid_post"), Site(-1, "logits")]

    def locate(prompt):  # type: ignore[no-untyped-def]
        return (*at_last_instruction(prompt), len(prompt.ids) - 1)

    together = read(model, texts, sites, locate=locate)
    for row, text in enumerate(texts):
        prompt = model.plain(text)
        with torch.no_grad():
            output = model.hf(input_ids=prompt.ids.unsqueeze(0), output_hidden_states=True)
        at = list(locate(prompt))
        assert prompt.roles[at].tolist() == [INSTRUCTION, POST_INSTRUCTION]
        assert prompt.roles[at[0] + 1] == POST_INSTRUCTION
        for site, whole in zip(sites, (output.hidden_states[2], output.logits), strict=True):
            torch.testing.assert_close(together[site][row], whole[0, at], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ALIGNED)
def test_adding_the_direction_induces_refusal(name: str) -> None:
    """On harmless requests; that ablation undoes refusal is on the models' cards."""
    from attacks.core.refusals.openers import learn_openers, opens_with_refusal
    from benchmarks.inputs.behaviors import load_behaviors

    model = pocket(name)
    train = [row.for_attack() for row in load_behaviors("pocket-train")]
    some = [*[b for b in train if b.harmful][:40], *[b for b in train if not b.harmful][:40]]
    attack = load("refusal-direction", mode="add", coefficient=1.0)
    fitted = attack.prepare(model, some, rng=torch.Generator().manual_seed(0))
    asked = [row for row in load_behaviors("pocket-test") if not row.harmful][:20]
    (step,) = attack.run(model, asked[0], artefact=fitted, rng=torch.Generator())
    conversations = [model.conversation(row.text) for row in asked]
    openers = learn_openers(model, some)
    for changes, bound in ((step.interventions, (0.9, 1.0)), ((), (0.0, 0.1))):
        answers = model.generate(
            conversations, max_new_tokens=12, interventions=changes, batch_size=20
        )
        share = sum(opens_with_refusal(answer, openers) for answer in answers) / len(answers)
        assert bound[0] <= share <= bound[1]


def test_places_that_there_are_not_are_refused() -> None:
    model = pocket("pocket-llama")
    train = [Behavior(f"{n}", f"Mend the {n}.", harmful=n < 4) for n in range(8)]
    rng = torch.Generator()
    for params, reason in (
        ({"layer": 6}, r"layer 6 is not in 0\.\.5"),
        ({"layer": 1, "position": -9}, r"position -9 is not in -5\.\.-1"),
    ):
        for name in ("refusal-direction", "refusal-direction-weights"):
            with pytest.raises(BadInput, match=reason):
                load(name, **params).prepare(model, train, rng=rng)


def test_rerouting_can_aim_at_harmfulness(behavior: Behavior) -> None:
    """The loss reads the last slot: the suffix belongs to the request."""
    model = pocket("pocket-llama")
    prompt = model.prompt(suffixed(behavior, 3), rng=torch.Generator().manual_seed(0))
    train = [Behavior(f"{n}", f"Mend the {n}.", harmful=n < 4) for n in range(8)]
    directions = harm_directions(model, train, (1, 2))
    assert all(float(unit.norm()) == pytest.approx(1.0) for unit in directions.values())
    from attacks.core.artefact import Artefact

    for form in ("cosine", "projection"):
        loss = SteeringLoss((1, 2), form=form, token="instruction")  # type: ignore[arg-type]
        bound = loss.bind(model, prompt, Artefact(directions))
        assert {site.positions for site in bound.reads} == {(int(prompt.slots[-1]),)}
        trace = model.trace(prompt.ids.unsqueeze(0), bound.reads)
        assert torch.isfinite(bound(trace)).all()
