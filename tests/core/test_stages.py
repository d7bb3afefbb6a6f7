"""Stages of a search: one after another, an end by themselves, the same from a checkpoint."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from attacks import load
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.layout import Layout
from attacks.core.refusals.own_answers import DIRECTION, GIVEN, OwnAnswers
from attacks.core.search import CoordinateSearch, Found
from attacks.core.search.stages import Stage, Verdict, search_stages
from benchmarks.inputs.behaviors import load_behaviors
from conftest import pocket

MODEL = "pocket-llama-hard1"


@pytest.fixture(scope="module")
def behaviors() -> list[Behavior]:
    rows = load_behaviors("pocket-test")
    return [row.for_attack() for row in rows if row.harmful][:3]


@pytest.fixture(scope="module")
def train() -> list[Behavior]:
    rows = [row.for_attack() for row in load_behaviors("pocket-train")]
    harmful, harmless = ([row for row in rows if row.harmful == flag] for flag in (True, False))
    return [*harmful[:24], *harmless[:24]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_strong_says_its_target_and_stops_by_itself(
    behaviors: list[Behavior], train: list[Behavior]
) -> None:
    model, attack = pocket(MODEL), load("strong", steps=24)
    artefact = attack.prepare(model, train, rng=generator())
    for behavior in behaviors:
        steps = list(attack.run(model, behavior, artefact=artefact, rng=generator()))
        assert len(steps) < 24, "it ends once greedy decoding says the target"
        (prompt,) = steps[-1].prompts[:1]
        text = prompt[-1].content
        # Slots stand on both sides, and the request is whole.
        head, _, tail = text.partition(behavior.text)
        assert behavior.text in text and head and tail
        (answer,) = model.generate([prompt], max_new_tokens=40)
        assert answer.startswith(behavior.affirmative)


def test_a_given_target_out_of_reach_is_left_for_the_own_answer(
    behaviors: list[Behavior], train: list[Behavior]
) -> None:
    """A model that never opens so would be searched for the given target alone."""
    model = pocket(MODEL)
    attack = load("strong", steps=24, width=1, first=1, merge=0, restart=1)
    artefact = attack.prepare(model, train, rng=generator())
    other = replace(behaviors[0], target="Zebras, zebras, zebras, zebras")
    steps = list(attack.run(model, other, artefact=artefact, rng=generator()))
    sources = [step.source for step in steps]
    stale = [int(str(step.state["stale"])) for step in steps[:12]]
    assert [0, 1, 2, 0] in [stale[at : at + 4] for at in range(9)], "it begins anew"
    assert sources[:12] == [GIVEN] * 12, "half of the steps, new starts included"
    assert len(steps) > 12 and set(sources[12:]) == {DIRECTION}
    for at in (1, 11):
        rest = attack.run(model, other, artefact=artefact, rng=generator(), state=steps[at].state)
        assert [step.prompts for step in rest] == [step.prompts for step in steps[at + 1 :]]


def test_where_the_model_opens_otherwise_the_own_answer_comes_first(
    behaviors: list[Behavior], train: list[Behavior]
) -> None:
    model, attack = pocket(MODEL), load("strong", steps=4)
    shares = {}
    for first, opening in ((GIVEN, None), (DIRECTION, "Zebras, zebras")):
        told = [replace(row, target=opening) if opening else row for row in train]
        artefact = attack.prepare(model, told, rng=generator())
        shares[first] = artefact.data["opens"]
        step = next(iter(attack.run(model, behaviors[0], artefact=artefact, rng=generator())))
        assert step.source == first
    assert shares[GIVEN] >= 0.5 and shares[DIRECTION] == 0


def test_the_opening_of_an_own_answer_comes_before_all_of_it(
    behaviors: list[Behavior], train: list[Behavior]
) -> None:
    model, attack = pocket(MODEL), load("strong", steps=12)
    told = [replace(row, target="Zebras, zebras") for row in train]
    artefact = attack.prepare(model, told, rng=generator())
    own = OwnAnswers.of(artefact.tensors, artefact.data, model.n_layers)
    for behavior in behaviors[:2]:
        target, _ = own.target(model, behavior, tokens=attack.tokens)
        opening = own.opening(model, behavior, target, tokens=8)
        assert (
            len(model.chat.ids(opening)) == 8 and target.startswith(opening) and target != opening
        )
        steps = list(attack.run(model, behavior, artefact=artefact, rng=generator()))
        (answer,) = model.generate(steps[-1].prompts[:1], max_new_tokens=40)
        assert answer.startswith(opening)
        for at in range(0, len(steps) - 1, 3):
            state = steps[at].state
            rest = attack.run(model, behavior, artefact=artefact, rng=generator(), state=state)
            assert [step.prompts for step in rest] == [step.prompts for step in steps[at + 1 :]]


@dataclass
class Wants:
    """Wants one token in every slot."""

    token: int
    rows: int

    def losses(self, candidates: torch.Tensor, k: int | None = None) -> torch.Tensor:
        return (candidates != self.token).float().mean(1)

    def gradient(self, candidate: torch.Tensor) -> tuple[torch.Tensor, float]:
        slope = torch.zeros(len(candidate), self.rows)
        slope[:, self.token] = -1
        return slope, float(self.losses(candidate.unsqueeze(0)))


def test_what_has_passed_is_handed_over_where_the_end_has_lost_it(
    behaviors: list[Behavior],
) -> None:
    model = pocket(MODEL)
    asked = Layout("suffix").conversation(model, behaviors[0], 4)
    prompt = model.prompt(asked, rng=generator())
    first, second = (model.chat.ids(f"x {word}")[-1] for word in ("the", "and"))
    made = [Wants(token, len(model.chat.allowed)) for token in (first, second)]

    def stages(closing: int | None) -> list[Callable[[], Stage]]:
        def passed(found: Found) -> Verdict:
            return "passed" if (found.ids[0] == first).sum() >= 3 else "on"

        one = Stage(prompt, made[0], passed, within=20)
        other = Stage(prompt, made[1], lambda _: "on", closing=closing)
        return [lambda: one, lambda: other]

    search = CoordinateSearch(24, 32, 8)
    ends = {}
    for closing in (None, 4):
        rng = generator()
        steps = list(search_stages(model, stages(closing), search, restart=0, rng=rng))
        text = steps[-1].prompts[0][-1].content
        ends[closing] = len(steps), text.count(" the"), text.count(" and")
    length, kept, new = ends[4]
    assert kept >= 3 and new <= 1 and length < 24
    assert ends[None][0] == 24 and ends[None][2] == 4, "without it the last stage has its way"


def test_the_given_target_needs_no_own_answer(
    behaviors: list[Behavior], train: list[Behavior]
) -> None:
    model, attack = pocket(MODEL), load("strong", steps=16, target="given")
    artefact = attack.prepare(model, train, rng=generator())
    steps = list(attack.run(model, behaviors[0], artefact=artefact, rng=generator()))
    assert all("own" not in step.source for step in steps)


def test_going_on_from_any_step_gives_the_same_steps(
    behaviors: list[Behavior], train: list[Behavior]
) -> None:
    model = pocket("pocket-llama-hard3")
    # Slow numbers, so that there are steps to go on from, and restarts among them.
    attack = load(
        "strong", steps=8, width=4, slots=4, starts=2, first=4, merge=0, restart=2, place="suffix"
    )
    artefact = attack.prepare(model, train, rng=generator())
    whole = list(attack.run(model, behaviors[1], artefact=artefact, rng=generator()))
    assert len(whole) > 3
    for at in (0, len(whole) // 2):
        rest = attack.run(
            model, behaviors[1], artefact=artefact, rng=generator(9), state=whole[at].state
        )
        for step, expected in itertools.zip_longest(rest, whole[at + 1 :]):
            assert step is not None and expected is not None
            assert (step.prompts, step.loss) == (expected.prompts, expected.loss)


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"restart": -1}, {"place": "nowhere"}])
def test_numbers_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        load("strong", **wrong)
