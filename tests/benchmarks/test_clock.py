"""The time of day jumps, back and forward, by hours and by years: nothing follows it."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.harness.checkpoints import Checkpoint, Checkpoints
from benchmarks.harness.timing import Bar, Clock, Stopwatch, no_device
from benchmarks.storage.store import read_records
from conftest import ROOT
from runs import SEARCH, contents, make_model, write_behaviors

#: Seconds that the time of day is off by, one after the other.
JUMPS = (0, 3600, -3600, 31_536_000, -31_536_000)

#: In a `sitecustomize`, which Python imports before all else, in workers too.
JUMPING = f"""
import itertools, time

_jumps, _seconds, _nanoseconds = itertools.cycle({JUMPS}), time.time, time.time_ns
time.time = lambda: _seconds() + next(_jumps)
time.time_ns = lambda: _nanoseconds() + next(_jumps) * 10**9
"""


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading of the time of day is off by another jump."""
    jumps, now = itertools.cycle(JUMPS), time.time
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    monkeypatch.setattr("tqdm.std.time", time.time)
    assert len({round(time.time() / 1000) for _ in JUMPS}) == len(JUMPS)


@pytest.mark.usefixtures("jumping")
def test_intervals_are_none_of_the_time_of_day(tmp_path: Path) -> None:
    watch, clock = Stopwatch(), Clock(no_device)
    keeper = Checkpoints(tmp_path, every=600).keeper("cell")
    for _ in range(2 * len(JUMPS)):
        with clock.phase("search"):
            pass
        assert 0 <= clock.spent("search") <= watch.elapsed < 600
        assert not keeper.due
        keeper.save(Checkpoint({"steps": 1}))


@pytest.mark.usefixtures("jumping")
def test_the_remaining_time_is_none_of_the_time_of_day() -> None:
    shown = io.StringIO()
    with Bar(total=40, file=shown, mininterval=0) as bar:
        for _ in range(4 * len(JUMPS)):
            bar.update()
            told = bar.format_dict
            assert 0 <= told["elapsed"] < 600
            assert told["rate"] is None or told["rate"] > 0.01
    # Each update was shown.
    assert all(f" {done}/40 [00:0" in shown.getvalue() for done in range(1, 4 * len(JUMPS) + 1))


@pytest.mark.slow
def test_a_run_is_the_same_whatever_the_time_of_day_does(tmp_path: Path) -> None:
    """Two workers with a deadline, searches with checkpoints, and a lock."""
    model, behaviors = make_model(tmp_path / "tiny"), write_behaviors(tmp_path / "b.jsonl", 2)
    (tmp_path / "jumping").mkdir()
    (tmp_path / "jumping" / "sitecustomize.py").write_text(JUMPING, "utf-8")
    command = ["run", "--model", str(model), "--behaviors", str(behaviors), "--limit", "2"]
    command += ["--attack", f"gcg:{SEARCH}", "--attack", "direct", "--steps", "6"]
    command += ["--max-new-tokens", "4", "--workers", "2", "--deadline", "600", "--seconds", "600"]
    elapsed = {}
    for name, path in {"still": ROOT, "jumps": f"{tmp_path / 'jumping'}{os.pathsep}{ROOT}"}.items():
        watch = Stopwatch()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.cli", *command, "--out", str(tmp_path / name)],
            env={**os.environ, "PYTHONPATH": str(path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        elapsed[name] = watch.elapsed
        assert done.returncode == 0, done.stderr
        assert "no sign of life" not in done.stderr
    assert contents(tmp_path / "jumps") == contents(tmp_path / "still")
    records = read_records(tmp_path / "jumps")
    assert {record.status for record in records} == {"ok"}
    for record in records:
        spent = dataclasses.asdict(record.seconds).values()
        assert all(seconds >= 0 for seconds in spent) and sum(spent) <= elapsed["jumps"]


def test_nothing_imports_a_clock_by_another_name() -> None:
    """`test_architecture` looks for calls by name; and what is measured is never a time of day."""
    for package in ("attacks", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text("utf-8")
            assert "from time import" not in text and "time.time_ns(" not in text, path
    assert "time.time(" not in (ROOT / "benchmarks" / "harness" / "timing.py").read_text("utf-8")
