"""Kills runs at random moments, driver or worker, until they are through: ``make faults``.

Every run that comes to its end must hold the records of one that nothing disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

from runs import contents  # noqa: E402

ARGUMENTS = (
    *("run", "--model", "pocket-llama", "--behaviors", "pocket-test", "--train", "pocket-train"),
    *("--attack", "direct", "--attack", "gcg:steps=12,width=32,slots=6,n_replace=2"),
    *("--attack", "refusal-direction", "--attack", "ssr-probe:steps=12,width=32,slots=6"),
    *("--limit", "3", "--max-new-tokens", "12", "--checkpoint", "0", "--workers", "2"),
)


def started(out: Path) -> subprocess.Popen[bytes]:
    """A run in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.cli", *ARGUMENTS, "--out", str(out)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def workers(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that run cells for this one."""
    try:
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in listed}
    except OSError:
        return []
    return [pid for pid, line in lines.items() if b"spawn_main" in line]


def disturb(out: Path, seconds: float, draw: random.Random, counts: Counter[str]) -> bool:
    """One start and one kill within `seconds`; whether the run came to its end all the same."""
    process = started(out)
    try:
        deadline = time.monotonic() + draw.uniform(0.2, seconds)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        found = workers(process)
        if process.poll() is not None:
            counts["ended before the kill"] += 1
        elif found and draw.random() < 0.5:
            os.kill(draw.choice(found), signal.SIGKILL)
            counts["kills of a worker"] += 1
        else:
            process.kill()
            counts["kills of the driver"] += 1
        return process.wait(600) == 0
    finally:
        process.kill()
        process.wait()


def main() -> int:
    """Kills, compares, and writes what came of it."""
    parser = argparse.ArgumentParser(description="Kill runs at random moments.")
    parser.add_argument("--kills", type=int, default=50, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--out", type=Path, default=Path("results/faults"), metavar="DIR")
    args = parser.parse_args()
    draw, counts, begun = random.Random(args.seed), Counter[str](), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        undisturbed = Path(scratch) / "undisturbed"
        start = time.monotonic()
        if started(undisturbed).wait() != 0:
            raise SystemExit("the undisturbed run failed")
        seconds, expected = time.monotonic() - start, contents(undisturbed)
        while counts["kills of a worker"] + counts["kills of the driver"] < args.kills:
            out = Path(scratch) / "disturbed"
            while not disturb(out, seconds, draw, counts):
                pass
            counts["runs that ended"] += 1
            counts["runs with the records of the undisturbed one"] += contents(out) == expected
            shutil.rmtree(out)
    found = {**counts, "cells": len(expected[0]), "seconds": round(time.monotonic() - begun)}
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1) + "\n"
    (args.out / "kills.json").write_text(text, "utf-8")
    sys.stdout.write(text)
    same = counts["runs with the records of the undisturbed one"] == counts["runs that ended"]
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
