"""What is run first, and when all will be done, from what cells have taken."""

from __future__ import annotations

import random

import pytest
from test_store import record

from attacks import Behavior, load
from benchmarks.harness.cells import Cell, Task
from benchmarks.harness.forecast import Forecast
from benchmarks.harness.plan import check
from benchmarks.harness.timing import Bar
from benchmarks.inputs.suites import Suite, attack_hash
from benchmarks.storage.records import Seconds

SHORT, LONG, ANSWER = load("gcg", steps=10), load("gcg", steps=40), load("direct")


def taken(attack, search: float, *, model: str = "m", **fields):  # type: ignore[no-untyped-def]
    seconds = Seconds(prepare=1000.0, search=search, generate=1.0)
    return record("k", model=model, attack_hash=attack_hash(attack), seconds=seconds, **fields)


def forecast(**left: int) -> Forecast:
    """Of one model with so many cells of each attack."""
    attacks = {"short": SHORT, "long": LONG, "answer": ANSWER}
    steps = {attack_hash(SHORT): 10, attack_hash(LONG): 40, attack_hash(ANSWER): 1}
    found = Forecast(steps)
    for name, cells in left.items():
        found.left["m", attack_hash(attacks[name])] = cells
    return found


def test_a_cell_lasts_as_long_as_those_before_it() -> None:
    found = forecast(short=3, long=2)
    assert found.remaining(1) is None
    found.learn(taken(SHORT, 4.0))
    found.done("m", attack_hash(SHORT))
    # Two of 5 s; of the other attack nothing is known but that it takes four times as many steps.
    assert found.remaining(1) == 2 * 5.0 + 2 * 20.0 and found.remaining(2) == 25.0
    found.learn(taken(LONG, 99.0))
    found.done("m", attack_hash(LONG))
    assert found.remaining(1) == 2 * 5.0 + 100.0
    found.learn(taken(LONG, 49.0))
    assert found.remaining(1) == 2 * 5.0 + 75.0
    for failed in (taken(LONG, 0.0, status="error"), taken(LONG, 0.0, status="out_of_memory")):
        found.learn(failed)
    assert found.remaining(1) == 2 * 5.0 + 75.0
    found.done("m", attack_hash(SHORT), 2)
    found.done("m", attack_hash(LONG))
    assert found.remaining(1) == 0.0


def test_another_model_tells_more_than_another_attack() -> None:
    found = forecast(long=1)
    found.learn(taken(SHORT, 4.0))
    found.learn(taken(LONG, 69.0, model="other"))
    assert found.remaining(1) == 70.0


def test_what_lasts_longest_is_begun_first_and_nothing_is_lost() -> None:
    def task(attack, at: int, cells: int = 1) -> Task:  # type: ignore[no-untyped-def]
        behavior = Behavior(str(at), "text")
        return Task(tuple(Cell(f"{at} {i}", attack, behavior, 0, "") for i in range(cells)))

    tasks = [
        *(task(ANSWER, at, 16) for at in range(2)),
        *(task(SHORT, at) for at in range(2, 5)),
        *(task(LONG, at) for at in range(5, 8)),
    ]
    shuffled = random.Random(0).sample(tasks, len(tasks))

    def order(found: Forecast) -> list[str]:
        made = found.longest_first("m", shuffled)
        assert sorted(map(id, made)) == sorted(map(id, shuffled))
        return [next(name for name, attack in names if attack is t.attack) for t in made]

    names = [("short", SHORT), ("long", LONG), ("answer", ANSWER)]
    found = forecast()
    # By steps, where nothing is known: a batch of 16 counts as many.
    assert order(found) == ["long"] * 3 + ["answer"] * 2 + ["short"] * 3
    for attack, seconds in ((SHORT, 59.0), (LONG, 9.0), (ANSWER, 0.0)):
        found.learn(taken(attack, seconds))
    assert order(found) == ["short"] * 3 + ["answer"] * 2 + ["long"] * 3
    # Tasks that last alike stay as they are.
    same = [each for each in shuffled if each.attack is LONG]
    assert found.longest_first("m", same) == same


def test_a_plan_counts_every_cell() -> None:
    suite = Suite("t", ("pocket-llama", "pocket-qwen2"), ("direct", "gcg"), "pocket-test", limit=3)
    plan = check(suite)
    earlier = [taken(ANSWER, 2.0, model="pocket-llama", origin="elsewhere")]
    found = Forecast.of(plan, earlier)
    assert found.left.total() == plan.n_cells == 12 and found.remaining(1) is None


def test_the_line_of_a_run_shows_the_forecast(capsys: pytest.CaptureFixture[str]) -> None:
    left = [None, 3661.0]
    with Bar(total=4, desc="run", left=lambda: left[0]) as bar:
        left.pop(0)
        bar.update()
        bar.refresh()
    shown = capsys.readouterr().err
    assert "<?" in shown and "<1:01:01" in shown and "cell/s" not in shown
