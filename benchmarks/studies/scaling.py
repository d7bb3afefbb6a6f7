"""How runs scale, and where they would stop to: ``python -m benchmarks.studies.scaling --out DIR``.

Measures the wall-clock time of the same searches with one and with two workers (strong scaling: the
same cells; weak scaling: as many cells for each worker), by this machine's processes and by Ray,
and what the one writer and the driver spend on a cell: a record on the disk, a checkpoint, and a
message through Ray. From these it computes the number of GPUs at which the driver has no time left.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.boards.tables import table
from benchmarks.common.files import write_whole
from benchmarks.common.progress import say
from benchmarks.harness.checkpoints import Checkpoint, encode
from benchmarks.harness.timing import Stopwatch
from benchmarks.storage.records import Record
from benchmarks.storage.store import Store, read_judgements, read_records

#: Of every run.
RUN = ("run", "--model", "pocket-llama", "--attack", "gcg:steps=16,width=64")
SETS = ("--behaviors", "pocket-test", "--max-new-tokens", "48")
CELLS = 24
#: Seconds of a search on a large model that the paper model is computed for, beside those measured.
LONG = (10.0, 60.0, 600.0)
GPUS = 1000
_REPEATS = 200


def wall(engine: str, workers: int, cells: int) -> tuple[float, list[Record]]:
    """Seconds of a run of `cells` cells in a separate process, and its records."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.cli", *RUN, *SETS, "--limit", str(cells)]
        command += ["--workers", str(workers), "--engine", engine, "--out", folder]
        watch = Stopwatch()
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        seconds = watch.elapsed
        if done.returncode:
            raise SystemExit(done.stderr.strip()[-500:])
        return seconds, read_records(Path(folder))


def scaling(engine: str, cells: int, rounds: int) -> list[dict[str, Any]]:
    """Strong and weak scaling with one and two workers; medians over rounds, in alternation."""
    runs = {
        "1 worker": (1, cells),
        "2 workers, the same cells": (2, cells),
        "2 workers, twice the cells": (2, 2 * cells),
    }
    # With a cell for each worker first: what their start takes, however many cells there are.
    found: dict[tuple[int, int], list[float]] = {
        plan: [] for plan in ((1, 1), (2, 2), *runs.values())
    }
    for number in range(rounds):
        for (workers, count), times in found.items():
            seconds, records = wall(engine, workers, count)
            assert len(records) == count and all(row.status == "ok" for row in records)
            times.append(seconds)
            run = f"workers: {workers}, cells: {count}"
            say(f"{engine}, round {number + 1}, {run}: {seconds:.1f} s")
    middle = {plan: statistics.median(times) for plan, times in found.items()}
    rows: list[dict[str, Any]] = []
    for name, (workers, count) in runs.items():
        seconds, start = middle[workers, count], middle[workers, workers]
        rate = (count - workers) / (seconds - start)
        row = {"engine": engine, "run": name, "cells": count, "seconds": seconds}
        single = rows[0]["rate"] if rows else rate
        rows.append(row | {"start": start, "rate": rate, "efficiency": rate / (workers * single)})
    return rows


def seconds_each(work: Callable[[int], object], count: int = _REPEATS) -> float:
    """Mean seconds of one of `count` calls, which get their number."""
    watch = Stopwatch()
    for number in range(count):
        work(number)
    return watch.elapsed / count


def costs(board: Path, where: Path | None = None) -> dict[str, float]:
    """Seconds that the driver, or a worker, spends on one record, checkpoint and message.

    Args:
        board: whose records and judgements are written again.
        where: a folder on the disk that is to be measured; None: that of temporary files.
    """
    records = [row for row in read_records(board) if row.attack == "gcg"]
    judged: dict[str, list[Any]] = {}
    for judgement in read_judgements(board):
        judged.setdefault(judgement.key, []).append(judgement)
    with tempfile.TemporaryDirectory(dir=where) as name:
        folder = Path(name)
        with Store(folder / "store") as store:

            def add(number: int) -> None:
                row = records[number % len(records)]
                key = f"{number:016x}"
                rows = [replace(one, key=key) for one in judged.get(row.key, [])]
                store.add(replace(row, key=key), rows)

            record = seconds_each(add)
            size = (folder / "store" / "records.jsonl").stat().st_size / _REPEATS
        # A buffer of 16 candidates with their losses: 5 kB, about what a search of these keeps.
        state = Checkpoint({"buffer": torch.arange(640).reshape(16, 40), "steps": 7}, {"best": 0.5})
        data = encode(state)
        checkpoint = seconds_each(lambda _: write_whole(folder / "one", encode(state)))
    found = {"record": record, "record_bytes": size, "checkpoint": checkpoint}
    found["checkpoint_bytes"] = float(len(data))
    if importlib.util.find_spec("ray"):
        found["message"] = _message(int(size))
    return found


def _message(size: int) -> float:
    """Seconds of a task to a Ray actor and of its answer, of the size of a record."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        echo = ray.remote(_Echo).remote()
        ray.get(echo.say.remote(size))
        return seconds_each(lambda _: ray.get(echo.say.remote(size)))
    finally:
        ray.shutdown()


class _Echo:
    """An actor that answers at once."""

    def say(self, size: int) -> bytes:
        """`size` bytes."""
        return bytes(size)


def limits(cost: dict[str, float], cell: float) -> list[dict[str, float]]:
    """For cells of several lengths: how busy the driver is with `GPUS`, and at how many it is full.

    The driver takes cells one after the other: a message and a record each. Each GPU asks for it
    once a cell. So it is full at (seconds of a cell) / (seconds of the driver for one).
    """
    each = cost["record"] + cost.get("message", 0.0)
    return [
        {
            "cell": seconds,
            "busy": GPUS * each / seconds,
            "most": seconds / each,
            "records_mb_an_hour": GPUS / seconds * cost["record_bytes"] * 3600 / 1e6,
        }
        for seconds in (cell, *LONG)
    ]


def page(rows: Sequence[dict[str, Any]], cost: dict[str, float], model: Any) -> str:
    """The tables, in Markdown."""
    runs = table(
        ("Engine", "Run", "Cells", "Seconds", "Of these start", "Efficiency"),
        [
            (
                row["engine"],
                row["run"],
                str(row["cells"]),
                f"{row['seconds']:.1f}",
                f"{row['start']:.1f}",
                f"{row['efficiency']:.2f}",
            )
            for row in rows
        ],
        left=2,
    )
    parts = table(
        ("Part", "Milliseconds", "Bytes"),
        [
            (name, f"{1e3 * cost[name]:.2f}", f"{cost.get(f'{name}_bytes', 0):.0f}")
            for name in ("record", "checkpoint", "message")
            if name in cost
        ],
        left=1,
    )
    paper = table(
        ("Seconds of a cell", f"Driver busy at {GPUS} GPUs", "Full at GPUs", "Records, MB an hour"),
        [
            (
                f"{row['cell']:.3g}",
                f"{row['busy']:.3f}",
                f"{row['most']:.0f}",
                f"{row['records_mb_an_hour']:.0f}",
            )
            for row in model
        ],
        left=0,
    )
    return f"{runs}\n\n{parts}\n\n{paper}\n"


def main() -> None:
    """Measure, and write `README.md` and `scaling.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--board", type=Path, default=Path("results/pocket-board"))
    parser.add_argument("--cells", type=int, default=CELLS)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    engines = ["local", *(["ray"] if importlib.util.find_spec("ray") else [])]
    rows = [row for name in engines for row in scaling(name, options.cells, options.rounds)]
    options.out.mkdir(parents=True, exist_ok=True)
    cost = costs(options.board, options.out)
    model = limits(cost, 1 / rows[0]["rate"])
    (options.out / "scaling.json").write_text(
        json.dumps({"runs": rows, "costs": cost, "model": model}, indent=1) + "\n", "utf-8"
    )
    (options.out / "README.md").write_text(page(rows, cost, model), "utf-8")


if __name__ == "__main__":
    main()
