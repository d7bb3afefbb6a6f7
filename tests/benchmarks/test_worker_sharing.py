"""How many workers share a device: a pure rule, and a device whose figures are made up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from attacks.attack import Behavior
from benchmarks.cli import main
from benchmarks.harness import sharing
from benchmarks.harness.cells import Cell, Task
from benchmarks.harness.engines import Result
from benchmarks.harness.runner import run
from benchmarks.harness.sharing import Gauge, SharingPool, Taken, gauge
from benchmarks.storage.store import read_records
from runs import SEARCH, Scripted, contents, make_model, make_setup, make_suite, write_behaviors

GB = 10**9


@pytest.mark.parametrize(
    ("need", "free", "busy", "most", "workers"),
    [
        (10 * GB, 80 * GB, 0.01, 16, 7),  # Memory: 6.4 beside the first.
        (10 * GB, 80 * GB, 0.3, 16, 3),  # Time.
        (10 * GB, 80 * GB, 0.01, 4, 4),  # Cores.
        (10 * GB, 80 * GB, 0.6, 16, 1),
        (10 * GB, 80 * GB, None, 16, 1),
        (10 * GB, 12 * GB, 0.1, 16, 1),  # It would fit, were nothing kept free.
        (10 * GB, 0, 0.1, 16, 1),
        (0, GB, 0.0, 16, 16),
    ],
)
def test_as_many_as_memory_time_and_cores_allow(
    need: int, free: int, busy: float | None, most: int, workers: int
) -> None:
    assert Taken(need, free, busy).workers(most) == workers


class Made(Gauge):
    """40 GB; 8 are free no more once a worker is there, which uses a quarter of the time."""

    def __init__(self, busy: float | None = 0.25) -> None:
        self._left, self._busy = iter([40 * GB]), busy

    def free(self) -> int:
        return next(self._left, 32 * GB)

    def busy(self) -> float | None:
        return self._busy


def tasks(attack: Scripted, *names: str) -> list[Task]:
    """A cell each."""
    return [Task((Cell(name, attack, Behavior(name, "Paint the harp."), 0, ""),)) for name in names]


def results(pool: SharingPool, folder: Path, given: list[Task]) -> dict[str, Result]:
    """What becomes of them, by key."""
    setup = make_setup(str(make_model(folder / "tiny")), folder, device="cpu")
    with pool:
        return {task.cells[0].key: result for task, result in pool.run(setup, given)}


def test_the_first_search_decides_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "cores", lambda: 3)
    said: list[str] = []
    pool = SharingPool(said.append, deadline=600, read=lambda device, threads: Made())
    found = results(pool, tmp_path, tasks(Scripted(), "a", "b", "c", "d"))
    assert said == [
        "cpu: a worker takes 8.00 GB, 32.00 GB are free; 25% of the device's time; cores for 3: "
        "3 workers"
    ]
    # The label of a run, on the first cell too: boards keep different ones apart.
    assert [result[0].record.concurrency for result in found.values()] == [3] * 4


def test_a_device_that_cannot_be_read_is_not_shared(tmp_path: Path) -> None:
    said: list[str] = []
    pool = SharingPool(said.append, deadline=600, read=lambda device, threads: Made(None))
    found = results(pool, tmp_path, tasks(Scripted(), "a", "b"))
    assert [result[0].record.concurrency for result in found.values()] == [1, 1]
    assert "cannot be read (pip install nvidia-ml-py)" in said[0] and said[0].endswith(": 1 worker")


@pytest.mark.slow
def test_where_memory_runs_out_there_is_a_worker_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the cell is run again; alone, what it comes to is its record."""
    monkeypatch.setattr(sharing, "cores", lambda: 2)
    said: list[str] = []
    pool = SharingPool(said.append, deadline=600, read=lambda device, threads: Made())
    attack = Scripted(wrong="memory", wrong_on="big")
    found = results(pool, tmp_path, tasks(attack, "a", "big", "c"))
    assert {key: result[0].record.status for key, result in found.items()} == {
        "a": "ok",
        "big": "out_of_memory",
        "c": "ok",
    }
    assert said[1:] == ["out of memory during scripted on big: a worker less on cpu"]


@pytest.mark.slow
def test_a_run_that_decides_for_itself_is_that_of_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviors = write_behaviors(tmp_path / "b.jsonl", 3)
    suite = make_suite(
        make_model(tmp_path / "tiny"), behaviors, "direct", f"gcg:{SEARCH}", steps=3, device="cpu"
    )
    assert run(suite, tmp_path / "auto", workers="auto") and run(suite, tmp_path / "alone")
    assert contents(tmp_path / "auto") == contents(tmp_path / "alone")
    line = next(line for line in capsys.readouterr().err.splitlines() if "a worker takes" in line)
    counted = re.search(r"cores for \d+: (\d+) worker", line)
    assert counted is not None
    assert {row.concurrency for row in read_records(tmp_path / "auto")} == {int(counted[1])}


def test_the_processor_is_read() -> None:
    found = gauge("cpu", 1)
    assert 10**7 < found.free() < 10**14
    assert found.busy() == 1 / sharing.cores() and found.cores == 1


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--workers", "many"], "'many'; valid: a number, or auto"),
        (["--workers", "auto", "--engine", "ray"], "--workers auto is for local workers"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "quickstart", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
