"""Killed, resumed, limited or shared among workers: a run ends with the same records."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attacks import load
from attacks.attack import Artefact, Behavior, Step
from benchmarks.harness.cells import Cell, Task
from benchmarks.harness.forecast import Forecast
from benchmarks.harness.runner import run
from benchmarks.harness.workers import Pool
from benchmarks.inputs.suites import Suite
from benchmarks.storage.store import read_records
from conftest import ROOT
from runs import SEARCH, contents, make_model, make_setup, make_suite, write_behaviors

Contents = tuple[dict[str, dict[str, Any]], set[str]]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """Real attacks on a tiny random model."""
    folder = tmp_path_factory.mktemp("suite")
    return make_suite(
        make_model(folder / "tiny"),
        write_behaviors(folder / "test.jsonl", 4),
        "direct",
        f"random-search:{SEARCH}",
        f"gcg:{SEARCH}",
        train=str(write_behaviors(folder / "train.jsonl", 2, prefix="train")),
        steps=3,
        limit=3,
        attempts=2,
        harmless=True,
    )


@pytest.fixture(scope="module")
def undisturbed(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Contents]:
    """The folder of a run that nothing disturbed, and what it holds."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert run(suite, folder)
    return folder, contents(folder)


def start(suite: Suite, out: Path, **options: Any) -> subprocess.Popen[bytes]:
    """The run in a process of its own."""
    code = (
        "import json, pathlib, sys; from benchmarks.inputs.suites import suite_from; "
        "from benchmarks.harness.runner import run; "
        "values, out, options = map(json.loads, sys.argv[1:]); "
        "run(suite_from(values, 'test'), pathlib.Path(out), **options)"
    )
    values = (dataclasses.asdict(suite), str(out), options)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(json.dumps, values)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )


def until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    """Waits until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill_after(process: subprocess.Popen[bytes], path: Path, wanted: int) -> None:
    """SIGKILL a moment after `path` has the wanted number of lines."""
    until(lambda: lines(path) >= wanted or process.poll() is not None)
    time.sleep(random.Random(wanted).random() / 10)
    process.kill()
    process.wait()


def lines(path: Path) -> int:
    """Lines of a file that may not be there yet."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.mark.slow
def test_resuming_from_any_state_a_kill_can_leave(
    suite: Suite, undisturbed: tuple[Path, Contents], tmp_path: Path
) -> None:
    source, expected = undisturbed
    records = (source / "records.jsonl").read_bytes()
    judgements = (source / "judgements.jsonl").read_bytes().splitlines(keepends=True)
    draw = random.Random(0)
    for at in range(6):
        folder = tmp_path / str(at)
        folder.mkdir()
        # A record is written before its judgements, so these end somewhere after those before it.
        kept = records[: draw.randrange(len(records))]
        whole = [json.loads(line)["key"] for line in kept.splitlines(keepends=True)[:-1]]
        before = [line for line in judgements if json.loads(line)["key"] in whole]
        before = before[: len(before) - draw.randrange(3)] if kept.endswith(b"\n") else before
        (folder / "records.jsonl").write_bytes(kept)
        (folder / "judgements.jsonl").write_bytes(b"".join(before)[: draw.choice([None, -9])])
        assert run(suite, folder)
        assert contents(folder) == expected
        # Nothing was run twice: every complete line is a record of its own.
        assert lines(folder / "records.jsonl") == len(expected[0])


def test_resuming_after_sigkill(
    suite: Suite, undisturbed: tuple[Path, Contents], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    draw = random.Random(1)
    for _ in range(2):
        already = lines(out / "records.jsonl")
        kill_after(start(suite, out), out / "records.jsonl", already + draw.randrange(1, 4))
    assert lines(out / "records.jsonl") > 0
    assert run(suite, out)
    assert contents(out) == undisturbed[1]
    assert lines(out / "records.jsonl") == len(undisturbed[1][0])


def test_a_limit_and_the_order_of_attacks_change_no_record(
    suite: Suite, undisturbed: tuple[Path, Contents], tmp_path: Path
) -> None:
    changed = dataclasses.replace(suite, attacks=suite.attacks[::-1], limit=2, seconds=1000.0)
    assert run(changed, tmp_path)
    records, judgements = contents(tmp_path)
    for record in records.values():
        assert record.pop("budget_seconds") == 1000.0
        record["budget_seconds"] = None
    assert len(records) == 8
    assert records.items() <= undisturbed[1][0].items() and judgements <= undisturbed[1][1]


def test_the_order_of_tasks_changes_no_record(
    suite: Suite,
    undisturbed: tuple[Path, Contents],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Forecast, "longest_first", lambda self, model, tasks: tasks[::-1])
    assert run(suite, tmp_path)
    assert contents(tmp_path) == undisturbed[1]
    # It was another order, or this would test nothing.
    assert read_records(tmp_path)[0].key != read_records(undisturbed[0])[0].key


def test_workers_change_no_record(
    suite: Suite, undisturbed: tuple[Path, Contents], tmp_path: Path
) -> None:
    assert run(suite, tmp_path / "out", workers=2)
    assert contents(tmp_path / "out") == undisturbed[1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="lists children through /proc")
def test_workers_end_with_their_parent(suite: Suite, tmp_path: Path) -> None:
    long = dataclasses.replace(suite, steps=100_000, attacks=suite.attacks[2:])
    process = start(long, tmp_path / "out", workers=2)

    def children() -> list[int]:
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        lives = [int(pid) for pid in listed]
        return [pid for pid in lives if b"spawn_main" in command(pid)]

    until(lambda: len(children()) == 2)
    workers = children()
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not any(b"spawn_main" in command(pid) for pid in workers))


def command(pid: int) -> bytes:
    """The command line of a process, empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@dataclasses.dataclass(frozen=True)
class Deadly(type(load("direct"))):  # type: ignore[misc]
    """Ends its process on one behaviour, once or whenever `always`."""

    name = "deadly"
    searches = True
    mark: str = ""

    def run(self, model: Any, behavior: Behavior, **_: Any) -> Iterator[Step]:
        mark = Path(self.mark)
        if behavior.id == "always" or (behavior.id == "once" and not mark.exists()):
            mark.touch()
            os._exit(9)
        yield from super().run(model, behavior, artefact=Artefact(), rng=None)


def test_a_worker_that_dies_costs_at_most_its_cell(suite: Suite, tmp_path: Path) -> None:
    setup = make_setup(suite.models[0], tmp_path)
    attack = Deadly(mark=str(tmp_path / "mark"))
    tasks = [
        Task((Cell(name, attack, Behavior(name, "Paint the harp."), 0, ""),))
        for name in ("fine", "once", "always")
    ]
    said: list[str] = []
    with Pool(1, said.append) as pool:
        results = {task.cells[0].key: result for task, result in pool.run(setup, tasks)}
    assert results["always"] == ("error", "the worker process ended with exit code 9")
    assert [results[name][0].record.status for name in ("fine", "once")] == ["ok", "ok"]
    assert len(said) == 3
    assert said[0].endswith("during deadly on once; it is retried once")
    assert said[2].endswith("during deadly on always; given up")
