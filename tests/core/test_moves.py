"""Options of the search's candidates: hand-worked traces, plain GCG's step, and checkpoints."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks import load
from attacks.attack import Behavior
from attacks.core.artefact import EMPTY
from attacks.core.errors import BadInput
from attacks.core.objectives import TargetCrossEntropy
from attacks.core.prompt import suffixed
from attacks.core.search import CoordinateSearch, Evaluator, Moves
from attacks.core.search.candidates import ranked_swaps, swap, top_tokens
from attacks.core.search.coordinate import Found
from attacks.core.search.moves import Seen, merged, regularised, smoothed
from benchmarks.inputs.suites import attack_hash
from conftest import ROOT, pocket

VOCABULARY = 6
START = [0, 0, 0]


class Planted:
    """Losses that are the sum of `costs` (S, V) at the tokens chosen; scripted gradients."""

    def __init__(self, costs: Tensor, *gradients: Tensor) -> None:
        self.costs = costs
        self.gradients = iter(gradients)
        self.asked: list[list[list[int]]] = []

    def losses(self, candidates: Tensor, k: int | None = None) -> Tensor:
        self.asked.append(candidates.tolist())
        return self.costs.gather(1, candidates.T).sum(0)

    def gradient(self, candidate: Tensor) -> tuple[Tensor, float]:
        return next(self.gradients, self.costs), 0.0


def planted(work: Planted, moves: Moves, steps: int = 1, **numbers: Any) -> list[Found]:
    chat = SimpleNamespace(
        allowed=torch.ones(VOCABULARY, dtype=torch.bool),
        survives=lambda prompt, drawn: torch.ones(len(drawn), dtype=torch.bool),
    )
    table = torch.arange(VOCABULARY).float().unsqueeze(1)
    model: Any = SimpleNamespace(chat=chat, embedding_table=table)
    prompt: Any = SimpleNamespace(slot_ids=torch.tensor(START), n_slots=len(START))
    settings = {"width": 6, "topk": 2, "buffer": 1, **numbers}
    search = CoordinateSearch(steps, moves=moves, **settings)
    return list(search.run(model, prompt, work, rng=torch.Generator().manual_seed(0)))


COSTS = torch.tensor(
    [
        [5.0, 4.0, 3.0, 9.0, 9.0, 9.0],
        [5.0, 1.0, 2.0, 9.0, 9.0, 9.0],
        [5.0, 9.0, 9.0, 9.0, 0.0, 6.0],
    ]
)


def test_ranked_draws_take_the_best_token_of_each_slot_first() -> None:
    work = Planted(COSTS)
    planted(work, Moves(draw="ranked"), width=5)
    # Slot after slot: the best of each (2, 1, 4), then the second best (1, 2).
    assert work.asked[1] == [[2, 0, 0], [0, 1, 0], [0, 0, 4], [1, 0, 0], [0, 2, 0]]
    rows = ranked_swaps(torch.tensor([7, 8]), torch.tensor([[1, 2], [3, 4]]))
    assert rows.tolist() == [[1, 8], [7, 3], [2, 8], [7, 4]]


def test_merging_puts_the_best_changes_together_one_by_one() -> None:
    work = Planted(COSTS)
    (found,) = planted(work, Moves(draw="ranked", merge=4))
    # Singles in order of their loss: slot 2 -> 4 (10), slot 1 -> 1 (11), slot 1 -> 2 (12) and slot
    # 0 -> 2 (13). The third overwrites the second, as in the authors' code.
    assert work.asked[2] == [[0, 1, 4], [0, 2, 4], [2, 2, 4]]
    assert found.ids[0].tolist() == [2, 2, 4] and float(found.losses[0]) == 5
    for alone in (torch.tensor([[0, 1, 0]]), torch.empty((0, 3), dtype=torch.int64)):
        assert merged(torch.tensor(START), alone).shape == (0, 3), "nothing to put together"


def test_fresh_candidates_are_evaluated_once_and_a_ranked_search_then_goes_on() -> None:
    stuck = torch.full((3, VOCABULARY), 9.0)
    stuck[:, 0] = 0.0  # The start is best, so plain ranked search proposes the same for ever.
    for fresh in (False, True):
        work = Planted(stuck, *[COSTS] * 3)
        planted(work, Moves(draw="ranked", fresh=fresh), steps=3, width=2, topk=4)
        asked = [tuple(row) for batch in work.asked for row in batch]
        assert (len(set(asked)) == len(asked)) == fresh
        assert len(set(asked)) == (7 if fresh else 3)
    seen = Seen(torch.tensor([[1, 2]]))
    drawn = torch.tensor([[1, 2], [3, 4], [3, 4], [5, 6]])
    assert seen.new(drawn).tolist() == [False, True, False, True]
    seen.add(drawn[1:2])
    assert seen.new(drawn).tolist() == [False, False, False, True]
    assert seen.ids.tolist() == [[1, 2], [3, 4]]


def test_momentum_averages_unit_gradients() -> None:
    one = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    other = torch.tensor([[0.0, -10.0], [5.0, 0.0]])
    first = smoothed(one, None, 0.4)
    torch.testing.assert_close(first, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    second = smoothed(other, first, 0.4)
    torch.testing.assert_close(second, torch.tensor([[0.24, 0.32 - 0.6], [0.6, 0.0]]))


def test_momentum_changes_what_is_drawn_and_is_in_the_checkpoint() -> None:
    """The second gradient alone would put token 5 first, the average keeps token 1 there."""
    early, late = torch.zeros(3, VOCABULARY), torch.zeros(3, VOCABULARY)
    early[:, 1], late[:, 5] = -1.0, -1.0
    for momentum, token in ((0.0, 5), (0.6, 1), (0.4, 5)):
        work = Planted(torch.full((3, VOCABULARY), 1.0), early, late)
        moves = Moves(momentum=momentum, draw="ranked")
        *_, last = planted(work, moves, steps=2, width=3, topk=1)
        assert {token for row in work.asked[2] for token in row if token} == {token}
        assert ("average" in last.state) == (momentum > 0)
        if momentum:
            average = last.state["average"]
            torch.testing.assert_close(average, momentum * early + (1 - momentum) * late)


def test_distance_prefers_tokens_close_by() -> None:
    table = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    gradient = torch.tensor([[0.0, -4.0, -3.0]])
    scores = regularised(gradient, torch.tensor([0]), table, 0.1)
    torch.testing.assert_close(scores, torch.tensor([[0.0, -0.8 + 0.5, -0.6 + 0.1]]))
    allowed = torch.ones(3, dtype=torch.bool)
    assert top_tokens(gradient, torch.tensor([0]), allowed, 1).tolist() == [[1]]
    assert top_tokens(scores, torch.tensor([0]), allowed, 1).tolist() == [[2]]
    near = Planted(torch.zeros(3, VOCABULARY), -torch.arange(6.0).expand(3, -1))
    planted(near, Moves(distance=10.0, draw="ranked"), topk=1)
    assert near.asked[1] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "embeddings are the ids themselves"


def test_what_makes_no_sense_is_refused() -> None:
    for wrong in ({"momentum": 1.0}, {"momentum": -0.1}, {"distance": -1.0}, {"merge": -1}):
        with pytest.raises(BadInput, match=next(iter(wrong))):
            Moves(**wrong)  # type: ignore[arg-type]
    for numbers in ({"n_replace": 2}, {"replace_coefficient": 1.0}, {"use_gradient": False}):
        with pytest.raises(BadInput, match="ranked"):
            CoordinateSearch(1, 1, 1, moves=Moves(draw="ranked"), **numbers)  # type: ignore[arg-type]


def plain_gcg(
    behavior: Behavior, rng: torch.Generator, steps: int
) -> list[tuple[list[int], float]]:
    """GCG with a buffer of one, written out: the best filling and its loss after each step."""
    model = pocket("pocket-llama")
    prompt = model.prompt(suffixed(behavior, 5), target=behavior.target, rng=rng)
    work = Evaluator(model, prompt, TargetCrossEntropy().bind(model, prompt, EMPTY))
    best = prompt.slot_ids
    lowest = float(work.losses(best.unsqueeze(0))[0])
    trail = []
    for _ in range(steps):
        gradient, _ = work.gradient(best)
        choices = top_tokens(gradient, best, model.chat.allowed, 16)
        drawn = swap(best, choices, width=24, n_replace=1, rng=rng)
        drawn = drawn[model.chat.survives(prompt, drawn)]
        losses = work.losses(drawn)
        if float(losses.min()) < lowest:
            lowest, best = float(losses.min()), drawn[int(losses.argmin())]
        trail.append((best.tolist(), lowest))
    return trail


def test_gcg_without_options_is_what_it_was(behavior: Behavior) -> None:
    """Its steps, bit for bit, and its identity in the committed runs."""
    attack = load("gcg", steps=4, width=24, topk=16, slots=5)
    seed = torch.Generator().manual_seed(3)
    steps = list(attack.run(pocket("pocket-llama"), behavior, artefact=EMPTY, rng=seed))
    trail = plain_gcg(behavior, torch.Generator().manual_seed(3), 4)
    assert [step.loss for step in steps] == [loss for _, loss in trail]
    assert [step.state["best_ids"][0].tolist() for step in steps] == [ids for ids, _ in trail]  # type: ignore[index, union-attr]
    for run, name, number in [
        ("pocket-board", "gcg", 8),
        ("pocket-board", "random-search", 8),
        ("pocket-rerouting", "gcg", 32),
        ("pocket-rerouting", "ssr-probe", 32),
    ]:
        with (ROOT / "results" / run / "records.jsonl").open(encoding="utf-8") as lines:
            known = {(row["attack"], row["attack_hash"]) for row in map(json.loads, lines)}
        assert (name, attack_hash(load(name, steps=number))) in known, (run, name)


OPTIONS: list[dict[str, Any]] = [
    {"moves": {"momentum": 0.4, "fresh": True}},
    {"moves": {"draw": "ranked", "distance": 0.5, "fresh": True}, "buffer": 0},
    {"moves": {"merge": 5}, "n_replace": 2, "buffer": 4},
    {"loss": {"kind": "mellowmax", "attention": 50.0}},
    {"layout": {"place": "both", "before": ["Hello."], "answer_tokens": 8}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_seed_one_result_and_going_on_is_bit_identical(
    options: dict[str, Any], behavior: Behavior
) -> None:
    attack = load("gcg", **{"steps": 4, "width": 12, "topk": 8, "slots": 4, **options})

    def run(state=None):  # type: ignore[no-untyped-def]
        rng = torch.Generator().manual_seed(3)
        model = pocket("pocket-llama-hard1")
        return list(attack.run(model, behavior, artefact=EMPTY, rng=rng, state=state))

    whole = run()
    rest = run(whole[1].state)
    assert len(whole) == 4
    assert [step.prompts for step in rest] == [step.prompts for step in whole[2:]]
    assert [step.loss for step in rest] == [step.loss for step in whole[2:]]


def test_a_match_ends_the_search_with_a_prompt_that_is_answered_with_the_target() -> None:
    model = pocket("pocket-llama")
    text = "How do I mend the harp?"
    (answer,) = model.generate([model.conversation(text)], max_new_tokens=8)
    easy = Behavior("easy", text, target=answer)
    numbers: dict[str, Any] = {"steps": 6, "width": 8, "topk": 8, "slots": 3}
    for match in (False, True):
        attack = load("gcg", **numbers, moves={"match": match})
        rng = torch.Generator().manual_seed(0)
        steps = list(attack.run(model, easy, artefact=EMPTY, rng=rng))
        assert (len(steps) < 6) == match
        if match:
            (said,) = model.generate(steps[-1].prompts[:1], max_new_tokens=30)
            assert said.startswith(answer)
            again = attack.run(
                model, easy, artefact=EMPTY, rng=torch.Generator(), state=steps[-1].state
            )
            assert list(again) == [], "nothing is left to do"
