"""Searches that share their passes: what each has to show is what it has to show alone."""

from __future__ import annotations

import _thread
import dataclasses
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import test_leaderboard as boards
import torch
from test_contract import artefact as fitted
from test_contract import small, train
from torch import Tensor

from attacks.attack import Artefact, Attack, Step
from attacks.core.model import JointModel, Model, Wish
from attacks.core.model.wishes import Reading
from attacks.gcg import GCG
from attacks.registry import parse_spec
from benchmarks.boards.leaderboard import render
from benchmarks.harness.bench import Bench, Outcome, model_id
from benchmarks.harness.cells import Cell, Settings, Task, cell_key
from benchmarks.harness.checkpoints import Checkpoints
from benchmarks.harness.engine import execute, split
from benchmarks.harness.occupancy import Shape, fewest, paces, together_on
from benchmarks.harness.rounds import Rounds, Seat
from benchmarks.harness.timing import no_device
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.storage.records import Record
from conftest import pocket
from runs import make_setup, plain

CELLS, SEATS = 4, 3
GCG_SPEC = "gcg:steps=4,width=24,slots=5"


@cache
def probe(name: str) -> Artefact:
    """A made-up probe: what is minimised need not be worth minimising here."""
    rng = torch.Generator().manual_seed(2)
    weight = torch.randn(pocket(name, "float64").width, generator=rng)
    return Artefact({"weight.1": weight, "bias.1": torch.zeros(())}, {"layers": [1]})


def bench_for(name: str, folder: Path, artefact: Artefact, **settings: Any) -> Bench:
    numbers = Settings(8, 2, "never", "phrases", ("phrases",), None)
    setup = make_setup(
        "",
        folder,
        name=name,
        device="cpu",
        dtype="float64",
        settings=dataclasses.replace(numbers, **settings),
        checkpoints=Checkpoints(folder, 0.0),
    )
    bench = Bench(setup, pocket(name, "float64"))
    bench.artefact = lambda cell: artefact  # type: ignore[method-assign]
    return bench


def cells_of(attack: Attack, bench: Bench, count: int = CELLS) -> tuple[Cell, ...]:
    """Cells of behaviours whose texts differ in length."""
    rows = sorted(load_behaviors("pocket-test")[:40], key=lambda row: len(row.text))[:: 40 // count]
    settings, openers = bench.setup.settings, bench.setup.openers
    return tuple(
        Cell(
            cell_key(model_id(bench.model), attack, "", row, 0, settings, openers),
            *(attack, row, 0, ""),
        )
        for row in rows[:count]
    )


def unseen(steps: int, loss: float | None) -> None:
    pass


def records(outcomes: Sequence[Outcome]) -> list[Record]:
    return [outcome.record for outcome in outcomes]


def alike(one: Sequence[Record], other: Sequence[Record]) -> None:
    """All the same, losses up to rounding, and work exactly."""
    assert len(one) == len(other)
    for mine, theirs in zip(map(plain, one), map(plain, other), strict=True):
        for record in (mine, theirs):
            record.pop("together")
        losses, wanted = mine.pop("losses"), theirs.pop("losses")
        assert losses == pytest.approx(wanted, rel=1e-5, abs=1e-6)
        assert mine == theirs


CASES = (
    ("pocket-llama", GCG_SPEC),
    ("pocket-gemma2", GCG_SPEC),
    ("pocket-gemma2", "ssr-probe:steps=4,width=16,slots=4,keep='none'"),
)
MORE = (
    ("pocket-llama", "ssr-probe:steps=4,width=16,slots=4"),
    ("pocket-llama", "strong:steps=5,width=12,slots=4,starts=4,first=8"),
    ("pocket-llama", "gcg:steps=2,width=192,slots=6"),  # Openings leave candidates.
    ("pocket-qwen2", "strong:steps=5,width=12,slots=4,starts=4,first=8"),
    ("pocket-llama", "gcg:steps=3,width=16,slots=4,draft.model='pocket-qwen2'"),
    ("pocket-llama", "soft-prompt:steps=4,slots=4"),
    ("pocket-llama", "pgd:steps=4,slots=4"),
    ("pocket-llama", "random-search:steps=4,width=16,slots=4"),
    ("pocket-llama", "gcg+refusal-direction"),
)


@cache
def artefact_for(name: str, spec: str) -> Artefact:
    if "keep='none'" in spec:
        return probe(name)
    if name == "pocket-llama" and "draft" not in spec:
        return fitted(spec.partition(":")[0])
    rng = torch.Generator().manual_seed(1)
    return parse_spec(spec).prepare(pocket(name), train(), rng=rng)


@pytest.mark.parametrize(
    ("name", "spec"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]
)
def test_a_search_beside_others_is_the_search_alone(name: str, spec: str, tmp_path: Path) -> None:
    bench = bench_for(name, tmp_path, artefact_for(name, spec))
    cells = cells_of(small(spec) if "+" in spec else parse_spec(spec), bench)
    single = records(execute(bench, Task(cells), unseen))
    together = records(execute(bench, Task(cells, SEATS), unseen))
    assert {record.status for record in single} == {"ok"}
    alike(together, single)
    assert {record.together for record in together} == {SEATS}
    assert all(record.seconds.search > 0 for record in together)


def test_passes_are_shared_and_seconds_shared_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_for("pocket-llama", tmp_path, Artefact())
    cells, sizes = cells_of(parse_spec(GCG_SPEC), bench, 3), []
    joint = Reading.together.__func__  # type: ignore[attr-defined]

    def counted(cls: Any, wishes: Sequence[Any]) -> list[Any]:
        sizes.append(len(wishes))
        answers: list[Any] = joint(cls, wishes)
        return answers

    monkeypatch.setattr(Reading, "together", classmethod(counted))
    execute(bench, Task(cells, 3), unseen)
    # Some have candidates that share their beginnings in more groups than others, so one more pass.
    assert sizes.count(3) > len(sizes) / 2


class Failing(GCG):
    """Fails, ends or interrupts at a step of the behaviour `who`."""

    who = ""
    act: Callable[[], bool] = staticmethod(lambda: True)

    def run(self, model: Model, behavior: Any, **given: Any) -> Iterator[Step]:
        for count, step in enumerate(super().run(model, behavior, **given), start=1):
            if behavior.id == Failing.who and count == 2 and not Failing.act():
                return
            yield step


def failing(cells: Sequence[Cell], who: int, act: Callable[[], bool]) -> tuple[Cell, ...]:
    attack = cells[0].attack
    fields = {field.name: getattr(attack, field.name) for field in dataclasses.fields(attack)}
    Failing.who, Failing.act = cells[who].behavior.id, staticmethod(act)  # type: ignore[assignment]
    return tuple(dataclasses.replace(cell, attack=Failing(**fields)) for cell in cells)


def broken() -> bool:
    raise ValueError("broken")


@pytest.mark.parametrize("act", [broken, lambda: False], ids=["fails", "ends early"])
def test_a_mate_that_goes_early_is_no_one_else_s_concern(
    act: Callable[[], bool], tmp_path: Path
) -> None:
    bench = bench_for("pocket-llama", tmp_path, Artefact())
    cells = failing(cells_of(parse_spec(GCG_SPEC), bench), 1, act)
    single = records(execute(bench, Task(cells), unseen))
    together = records(execute(bench, Task(cells, SEATS), unseen))
    alike(together, single)
    assert [record.steps for record in together] == [4, 1, 4, 4]
    assert together[1].status == ("error" if act is broken else "ok")


def test_an_interrupted_run_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    spec = "gcg:steps=6,width=24,slots=5"
    bench = bench_for("pocket-llama", tmp_path / "whole", Artefact())
    whole = records(execute(bench, Task(cells_of(parse_spec(spec), bench), SEATS), unseen))

    bench = bench_for("pocket-llama", tmp_path / "cut", Artefact())
    cells = cells_of(parse_spec(spec), bench)

    def interrupting(steps: int, loss: float | None) -> None:
        if steps == 4:
            _thread.interrupt_main()  # As Ctrl-C does: the main thread hears of it.

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist ignores it.
    with pytest.raises(KeyboardInterrupt):
        execute(bench, Task(cells, SEATS), interrupting)
    signal.signal(signal.SIGINT, before)
    checkpoints = bench.setup.checkpoints
    assert checkpoints is not None
    kept = [checkpoints.load(cell.key, bench.model.device) is not None for cell in cells]
    assert kept == [True] * SEATS + [False] * (CELLS - SEATS)
    # In another company: what was third is first, and is beside one that begins.
    began: list[int] = []
    order = (*cells[2:], *cells[:2])
    again = records(execute(bench, Task(order, 2), lambda steps, loss: began.append(steps)))
    alike([*again[2:], *again[:2]], whole)
    assert len(began) < sum(record.steps for record in whole)


def test_what_does_not_fit_is_run_in_smaller_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_for("pocket-llama", tmp_path, Artefact())
    cells = cells_of(parse_spec(GCG_SPEC), bench, 4)
    single = records(execute(bench, Task(cells), unseen))
    joint, sizes = Reading.together.__func__, []  # type: ignore[attr-defined]

    def small(cls: Any, wishes: Sequence[Any]) -> list[Any]:
        sizes.append(len(wishes))
        if len(wishes) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        answers: list[Any] = joint(cls, wishes)
        return answers

    monkeypatch.setattr(Reading, "together", classmethod(small))
    alike(records(execute(bench, Task(cells, 4), unseen)), single)
    assert 2 in sizes and sizes.count(4) < 4, "no room is asked for that was not there"


@pytest.mark.parametrize("guilty", [0, 2])
def test_what_one_wish_breaks_is_its_own_error(guilty: int) -> None:
    class Number(Wish):
        size = 1

        def __init__(self, value: int) -> None:
            self.value = value

        def joins(self, other: Wish) -> bool:
            return isinstance(other, Number)

        def alone(self) -> int:
            return self.together([self])[0]

        @classmethod
        def together(cls, wishes: Sequence[Number]) -> list[int]:
            if any(wish.value == guilty for wish in wishes):
                raise ArithmeticError(str(guilty))
            return [wish.value for wish in wishes]

    def job(value: int, seat: Seat[str]) -> str:
        try:
            return str(seat.ask(Number(value)))
        except ArithmeticError as error:
            return f"failed on {error}"

    jobs = [lambda seat, value=value: job(value, seat) for value in range(4)]
    found = dict(Rounds(3, no_device).run(jobs))
    assert [found[at] for at in range(4)] == [
        f"failed on {at}" if at == guilty else str(at) for at in range(4)
    ]


def test_rounds_do_not_depend_on_how_threads_are_scheduled(tmp_path: Path) -> None:
    """The order of turns is that of the seats, and stragglers are met again."""

    class Letter(Wish):
        size = 1

        def __init__(self, value: str) -> None:
            self.value = value

        def joins(self, other: Wish) -> bool:
            return isinstance(other, Letter) and self.value == other.value

        def alone(self) -> int:
            return self.together([self])[0]

        @classmethod
        def together(cls, wishes: Sequence[Letter]) -> list[int]:
            log.append(wishes[0].value * len(wishes))
            return [1] * len(wishes)

    log: list[str] = []

    def job(text: str, seat: Seat[str]) -> str:
        for letter in text:
            seat.ask(Letter(letter))
        return text

    texts = ("abab", "bab", "abab")
    for _ in range(20):
        log.clear()
        jobs = [lambda seat, text=text: job(text, seat) for text in texts]
        assert sorted(Rounds(3, no_device).run(jobs)) == list(enumerate(texts))
        assert log == ["aa", "bbb", "aaa", "bbb"]


def test_tasks_hold_searches_that_follow_those_that_end(tmp_path: Path) -> None:
    bench = bench_for("pocket-llama", tmp_path, Artefact())
    cells = cells_of(parse_spec(GCG_SPEC), bench, 20)
    assert [len(task.cells) for task in split(cells)] == [1] * 20
    tasks = list(split(cells, 3))
    assert [(len(task.cells), task.together) for task in tasks] == [(12, 3), (8, 3)]


def test_the_number_is_the_fewest_that_are_about_as_fast(tmp_path: Path) -> None:
    assert fewest({1: 1.0, 2: 1.9, 4: 3.0, 8: 3.1}) == 4
    assert fewest({1: 1.0, 2: 0.9}) == 1
    model = pocket("pocket-llama")
    rows = load_behaviors("pocket-test")[:4]
    found = paces(model, rows, Shape(8, 4), most=2)
    assert list(found) in ([1, 2], [1]) and all(math.isfinite(pace) for pace in found.values())
    bench = bench_for("pocket-llama", tmp_path, Artefact())
    cells = cells_of(parse_spec(GCG_SPEC), bench, 2)
    assert together_on(bench, cells, 7) == 7
    assert together_on(bench, cells, "auto") in (1, 2)
    assert together_on(bench, cells[:1], "auto") == 1
    direct = cells_of(parse_spec("direct"), bench, 2)
    assert together_on(bench, direct, 7) == 1


def test_a_view_counts_its_own_work_alone() -> None:
    model = pocket("pocket-llama")
    view = JointModel(model, lambda wish: wish.alone())
    before = model.meter.snapshot()
    ids: Tensor = model.plain("Hello.").ids
    view.prefix(ids)
    assert view.meter.forward_tokens == len(ids)
    assert model.meter.snapshot() == before


def test_a_board_says_which_searches_shared_passes(tmp_path: Path) -> None:
    cells = [(boards._record(0), ("knows",)), (boards._record(0, together=8), ("knows",))]
    rows = boards._run(tmp_path, cells)
    assert "shared each pass: gcg (8)." in render(rows, "md")
    assert "shared each pass" not in render(rows[:1], "md")
