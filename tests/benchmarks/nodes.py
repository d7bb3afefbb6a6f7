"""Kills one of two Ray nodes in the middle of a suite: ``python tests/benchmarks/nodes.py``.

Each node is a ``ray start`` of its own, with an address of its own. The records at the end must be
those of one process that nothing disturbed. Needs Linux and the extra `ray`.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

from runs import contents  # noqa: E402

PATIENCE = 120.0
"""Seconds that a node gets to come up."""


class Node:
    """One `ray start` in a session of its own, by which its processes are known."""

    def __init__(self, *arguments: str, env: dict[str, str]) -> None:
        command = ["start", *arguments, "--num-cpus", "1", "--block"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=env,
            start_new_session=True,
        )

    def members(self, command: bytes = b"") -> list[int]:
        """Its processes whose command line holds `command`."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.getsid(int(folder.name)) == self.process.pid:
                    found += [int(folder.name)] * (command in (folder / "cmdline").read_bytes())
            except OSError:
                continue
        return found

    def kill(self) -> None:
        """SIGKILL to all of it, the raylet and the workers too."""
        while members := self.members():
            for pid in members:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.05)
        self.process.wait()


@contextmanager
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a cluster of one node, and the environment of those who connect."""
    # On a cluster with a token of its own nobody else sends work to it.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    env = {**os.environ, **token, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    node = Node("--head", "--port", str(port), "--include-dashboard", "false", env=env)
    try:
        _await(lambda: _listens(port), "the first node")
        yield address, env
    finally:
        node.kill()


@contextmanager
def second(address: str, env: dict[str, str]) -> Iterator[Node]:
    """A node more."""
    node = Node("--address", address, "--node-ip-address", "127.0.0.2", env=env)
    try:
        _await(lambda: _size(address, env) == 2, "the second node")
        yield node
    finally:
        node.kill()


def _await(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not come up")
        time.sleep(0.5)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _size(address: str, env: dict[str, str]) -> int:
    """Nodes of the cluster that are alive."""
    code = (
        f"import ray; ray.init(address={address!r}, logging_level='ERROR'); "
        "print(sum(node['Alive'] for node in ray.nodes()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    return int(done.stdout) if done.returncode == 0 else 0


def started(
    arguments: Sequence[str], out: Path, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """A run."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.cli", "run", *arguments, "--out", str(out)],
        cwd=ROOT,
        env=env or {**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finished(run: subprocess.Popen[str], what: str) -> None:
    said = run.communicate()[1]
    if run.returncode:
        raise SystemExit(f"{what} failed: {said[-2000:]}")


def _count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def lose_a_node(arguments: Sequence[str], scratch: Path) -> dict[str, int | bool]:
    """Runs `reroute run ARGUMENTS` in one process, and on two nodes of which one is killed.

    The kill comes when half the records are there and both nodes are in a search.
    """
    begun = time.monotonic()
    alone, out = scratch / "alone", scratch / "two-nodes"
    _finished(started(arguments, alone), "the undisturbed run")
    expected, single = contents(alone), time.monotonic() - begun
    records, checkpoints = out / "records.jsonl", out / "checkpoints"
    found: dict[str, int | bool] = {}
    with head() as (address, env), second(address, env) as node:
        begun = time.monotonic()
        how = ("--engine", "ray", "--address", address, "--workers", "2", "--checkpoint", "0")
        run = started((*arguments, *how), out, env)
        try:
            while run.poll() is None:
                half = 2 * _count(records) >= len(expected[0])
                searching = len(list(checkpoints.glob("*.safetensors"))) == 2
                if half and searching and (workers := node.members(b"_Actor")):
                    found["records at the kill"] = _count(records)
                    found["workers killed"] = len(workers)
                    node.kill()
                    break
                time.sleep(0.01)
            _finished(run, "the run on two nodes")
        finally:
            run.kill()
            run.wait()
        disturbed = time.monotonic() - begun
    got = contents(out)
    return {
        "cells": len(expected[0]),
        "judgements": len(expected[1]),
        **found,
        "records alike": sum(got[0].get(key) == row for key, row in expected[0].items()),
        "judgements alike": len(got[1] & expected[1]),
        "seconds of one process": round(single),
        "seconds of two nodes": round(disturbed),
        "the same": got == expected and "workers killed" in found,
    }


def main() -> int:
    """Runs, compares, and writes what came of it."""
    parser = argparse.ArgumentParser(description="Kill one of two Ray nodes in mid-run.")
    parser.add_argument("suite", nargs="*", default=["quickstart"], help="of `reroute run`")
    parser.add_argument("--out", type=Path, default=Path("results/faults"), metavar="DIR")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = {"run": " ".join(args.suite), **lose_a_node(args.suite, Path(scratch))}
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1) + "\n"
    (args.out / "nodes.json").write_text(text, "utf-8")
    sys.stdout.write(text)
    return 0 if found["the same"] else 1


if __name__ == "__main__":
    sys.exit(main())
