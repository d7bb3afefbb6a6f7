"""The Slurm script, with a Slurm of one node: commands of these names that do what theirs do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.storage.store import read_records
from conftest import ROOT

SCRIPT = ROOT / "docs" / "slurm.sh"


def commands(folder: Path, **scripts: str) -> dict[str, str]:
    """An environment in which the commands of these names are these scripts."""
    folder.mkdir()
    for name, text in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
        path.chmod(0o755)
    slurm = {"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1", "SLURM_CPUS_PER_TASK": "1"}
    path = f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **slurm, "PATH": path}


def test_all_nodes_and_gpus_are_used(tmp_path: Path) -> None:
    env = commands(
        tmp_path / "bin",
        scontrol="printf 'n1\\nn2\\nn3\\n'",
        srun='echo "srun $*"',
    )
    env |= {"SLURM_JOB_NUM_NODES": "3", "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "32"}
    done = subprocess.run(
        [SCRIPT, "suite", "--out", "x"], env=env, capture_output=True, text=True, check=True
    )
    ray, _, command = done.stdout.strip().partition(" -- ")
    assert ray == (
        "srun --nodes=3 --ntasks=3 ray symmetric-run --address n1:6379 --min-nodes 3 "
        "--num-cpus=32 --num-gpus=8"
    )
    assert command == "reroute run suite --out x --engine ray --address n1:6379 --workers 24"


def test_without_gpus_each_core_is_a_worker(tmp_path: Path) -> None:
    env = commands(tmp_path / "bin", scontrol="echo n1", srun='echo "$*"')
    env |= {"SLURM_CPUS_PER_TASK": "5", "RAY_PORT": "7000"}
    env.pop("SLURM_GPUS_ON_NODE", None)
    done = subprocess.run([SCRIPT, "s"], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-5:] == ["ray", "--address", "n1:7000", "--workers", "5"]


def test_a_suite_runs_on_a_real_ray_of_one_node(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = commands(
        tmp_path / "bin",
        scontrol="echo 127.0.0.1",
        srun='shift 2; exec "$@"',
        ray=f'exec {sys.executable} -m ray.scripts.scripts "$@"',
        reroute=f'exec {sys.executable} -m benchmarks.cli "$@"',
    )
    out = tmp_path / "out"
    arguments = ["--model", "pocket-llama", "--behaviors", "pocket-test", "--limit", "2"]
    done = subprocess.run(
        [SCRIPT, *arguments, "--attack", "direct", "--out", str(out)],
        env={**env, "RAY_PORT": port},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row.status for row in read_records(out)] == ["ok", "ok"]
