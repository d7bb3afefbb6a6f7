"""Patience and jumps, slots redrawn, early stop, ranking: against hand-worked runs."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from attacks import load
from attacks.attack import Behavior, Pursuit
from attacks.core.artefact import EMPTY
from attacks.core.errors import BadInput
from attacks.core.model import Model
from attacks.core.objectives import TargetCrossEntropy
from attacks.core.prompt import Messages
from attacks.core.search import CoordinateSearch, search_suffix
from attacks.core.search.buffer import Buffer
from attacks.core.search.coordinate import Found
from attacks.core.search.ranking import Ranking
from conftest import pocket

SLOTS = 4


class Script:
    """Losses that come one after the other, whatever the candidates; counts what it is asked."""

    def __init__(self, *values: float) -> None:
        self.values: Iterator[float] = iter(values)
        self.asked: list[Tensor] = []

    def losses(self, candidates: Tensor, k: int | None = None) -> Tensor:
        self.asked.append(candidates)
        return torch.tensor([next(self.values) for _ in candidates])


def scripted(script: Script, steps: int = 20, **numbers: float) -> list[Found]:
    """A search of one candidate a step with these losses, the first of which is the start's."""
    chat = SimpleNamespace(
        allowed=torch.ones(1000, dtype=torch.bool),
        survives=lambda prompt, drawn: torch.ones(len(drawn), dtype=torch.bool),
    )
    prompt = SimpleNamespace(slot_ids=torch.zeros(SLOTS, dtype=torch.int64), n_slots=SLOTS)
    search = CoordinateSearch(steps, 1, 1, use_gradient=False, **numbers)  # type: ignore[arg-type]
    run = search.run(
        SimpleNamespace(chat=chat),  # type: ignore[arg-type]
        prompt,  # type: ignore[arg-type]
        script,  # type: ignore[arg-type]
        rng=torch.Generator().manual_seed(0),
    )
    found = []
    try:
        for at in run:
            found.append(at)
    except RuntimeError as error:  # The script has run out.
        assert isinstance(error.__cause__, StopIteration)
    return found


def test_a_jump_leaves_the_better_entries_after_too_many_steps_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        Buffer,
        "jumped",
        lambda self, rng: Buffer(self.ids[1:], self.losses[1:], self.capacity),
    )
    found = scripted(Script(8, 6, 7, 7.5, 9, 6.5, 7.25, 7.375), buffer=3, patience=2)
    pools = [at.state["pool_losses"].tolist() for at in found]  # type: ignore[union-attr]
    assert pools == [
        [6, 8],  # better: in vain 0
        [6, 7, 8],  # 1
        [6, 7, 7.5],  # 2, which is as much as patience allows
        [7, 7.5],  # 3: 9 does not get in, and the jump leaves 6 behind
        [6.5, 7, 7.5],  # better than what it went on from
        [6.5, 7, 7.25],
        [6.5, 7, 7.25],
    ]
    assert [at.state["stale"] for at in found] == [0, 1, 2, 0, 0, 1, 2]
    assert found[-1].losses.tolist() == [6, 6.5, 7, 7.25, 7.375, 7.5, 8, 9], "nothing is forgotten"


def test_the_search_ends_when_a_jump_leaves_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Buffer,
        "jumped",
        lambda self, rng: Buffer(self.ids[-1:], self.losses[-1:], self.capacity),
    )
    assert len(scripted(Script(8, 9, 10, 11, 12, 13), buffer=3, patience=2)) == 3


def test_a_jump_is_drawn_by_softmax_of_the_losses() -> None:
    buffer = Buffer(torch.arange(3).unsqueeze(1), torch.tensor([0.0, 1.0, 2.0]), 3)
    rng = torch.Generator().manual_seed(0)
    starts = [int(buffer.jumped(rng).ids[0]) for _ in range(6000)]
    counts = torch.bincount(torch.tensor(starts), minlength=3).double()
    expected = 6000 * (-buffer.losses.double()).softmax(0)
    assert float(((counts - expected) ** 2 / expected).sum()) < 13.8, "0.1 % point of chi-square"


def test_fewer_slots_are_redrawn_as_the_loss_falls() -> None:
    script = Script(8, 6, 7, 3, 0.5, 0)
    found = scripted(script, buffer=3, replace_coefficient=1.0)
    # int(best / 8.00001 * 4 slots), at least 1, renewed where the best got better.
    assert [at.state["n_replace"] for at in found] == [2, 2, 1, 1, 1]
    changed = [int((rows[0] != 0).sum()) for rows in script.asked[1:3]]
    assert changed[0] == 4, "all slots at the start"
    assert scripted(Script(8, 4), buffer=3, replace_coefficient=2.0)[0].state["n_replace"] == 2
    assert scripted(Script(8, 4), n_replace=3, buffer=3)[0].state["n_replace"] == 3


def test_a_loss_that_may_be_negative_goes_by_the_steps_left() -> None:
    found = scripted(Script(-1, -2, -3, -4, -5), 4, buffer=3, replace_coefficient=1.0)
    assert [at.state["n_replace"] for at in found] == [3, 2, 1, 1]


def test_the_search_stops_once_a_loss_is_low_enough_and_takes_a_step_at_least() -> None:
    assert len(scripted(Script(8, 6, 0.4, 0.1), buffer=3, early_stop=0.5)) == 2
    assert len(scripted(Script(0.1, 6, 7), buffer=3, early_stop=0.5)) == 1


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(BadInput, match="buffer of at least 2"):
        CoordinateSearch(1, 1, 1, buffer=1, patience=3)
    for name in ("buffer", "patience", "replace_coefficient"):
        with pytest.raises(BadInput, match=name):
            CoordinateSearch(1, 1, 1, **{name: -1})


def test_going_on_is_bit_identical_with_jumps_and_a_schedule(behavior: Behavior) -> None:
    model = pocket("pocket-llama")
    attack = load(
        "gcg", steps=8, width=8, topk=8, slots=4, buffer=4, patience=1, replace_coefficient=1.3
    )

    def run(state=None):  # type: ignore[no-untyped-def]
        rng = torch.Generator().manual_seed(3)
        return list(attack.run(model, behavior, artefact=EMPTY, rng=rng, state=state))

    whole = run()
    rest = run(whole[3].state)
    assert [step.prompts for step in rest] == [step.prompts for step in whole[4:]]
    assert [step.loss for step in rest] == [step.loss for step in whole[4:]]


def test_ranking_orders_by_its_own_loss_and_pays_once() -> None:
    script = Script(3, 1, 2, 0)
    ranking = Ranking(script)  # type: ignore[arg-type]
    ids = torch.tensor([[1, 1], [2, 2], [3, 3]])
    assert ranking.best_first(ids)[:, 0].tolist() == [2, 3, 1]
    more = torch.cat([ids, torch.tensor([[4, 4]])])
    assert ranking.best_first(more)[:, 0].tolist() == [4, 2, 3, 1]
    assert [len(rows) for rows in script.asked] == [3, 1]


def test_a_ranked_search_hands_over_its_candidates_in_that_order(behavior: Behavior) -> None:
    """Against the ranking loss computed on the strings."""
    model = pocket("pocket-llama")
    attack = load("ssr-probe", steps=3, width=16, slots=4, keep="rank", ranked=6, answer="given")
    fitted = attack.prepare(model, _train(), rng=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1)
    *_, last = attack.run(model, behavior, artefact=fitted, rng=rng)
    assert len(last.prompts) == 6
    losses = [_target_loss(model, turns, behavior.affirmative) for turns in last.prompts]
    assert losses == sorted(losses)


def test_a_suffix_search_without_ranking_keeps_its_own_order(behavior: Behavior) -> None:
    model = pocket("pocket-llama")
    found = search_suffix(
        model,
        behavior,
        Pursuit(TargetCrossEntropy(), behavior.affirmative),
        CoordinateSearch(2, 8, 8, buffer=4),
        slots=3,
        artefact=EMPTY,
        rng=torch.Generator().manual_seed(0),
    )
    *_, last = found
    losses = [_target_loss(model, turns, behavior.affirmative) for turns in last.prompts]
    assert losses == sorted(losses) and losses[0] == pytest.approx(last.loss, abs=1e-4)


def _target_loss(model: Model, messages: Messages, target: str) -> float:
    prompt = model.prompt(messages, target=target, rng=torch.Generator())
    bound = TargetCrossEntropy().bind(model, prompt, EMPTY)
    with torch.no_grad():
        return float(bound(model.trace(prompt.sequence.unsqueeze(0), bound.reads)))


def _train() -> list[Behavior]:
    verbs = {True: ("forge", "smash", "jam", "warp"), False: ("mend", "paint", "polish", "tune")}
    return [
        Behavior(f"{verb}-{thing}", f"How do I {verb} the {thing}?", harmful=harmful)
        for harmful, group in verbs.items()
        for verb in group
        for thing in ("harp", "organ", "kite", "ferry")
    ]
