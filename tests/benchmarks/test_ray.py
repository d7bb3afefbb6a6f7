"""The same cells on a Ray cluster: two nodes on this machine, one of which is killed."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

import ray
from ray.cluster_utils import Cluster
from test_faults import rude_tasks

from attacks.core.errors import BadInput
from benchmarks.harness.ray_engine import RayEngine
from benchmarks.harness.runner import run
from benchmarks.inputs.suites import Suite
from benchmarks.storage.store import read_records
from nodes import head, lose_a_node, started
from runs import SEARCH, contents, make_model, make_setup, make_suite, write_behaviors


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """Searches that last, and answers in a batch."""
    behaviors = write_behaviors(tmp_path / "b.jsonl", 4)
    model = make_model(tmp_path / "tiny")
    return make_suite(model, behaviors, "direct", f"gcg:{SEARCH}", steps=60)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head node, to which tests add others."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield found
    ray.shutdown()
    found.shutdown()


def test_two_nodes_give_what_one_process_gives(suite: Suite, cluster: Any, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    assert run(suite, tmp_path / "alone")
    assert run(suite, tmp_path / "out", engine="ray", address=cluster.address, workers=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_cells_of_a_lost_node_go_on_elsewhere(suite: Suite, cluster: Any, tmp_path: Path) -> None:
    node, out = cluster.add_node(num_cpus=1), tmp_path / "out"
    killed = threading.Event()

    def kill() -> None:
        # While both nodes search: a checkpoint of each is there.
        while len(list((out / "checkpoints").glob("*.safetensors"))) < 2:
            time.sleep(0.02)
        cluster.remove_node(node, allow_graceful=False)
        killed.set()

    threading.Thread(target=kill, daemon=True).start()
    how: dict[str, Any] = {"engine": "ray", "address": cluster.address, "checkpoint": 0}
    assert run(suite, out, workers=2, **how)
    assert killed.is_set()
    assert {record.status for record in read_records(out)} == {"ok"}
    assert run(suite, tmp_path / "alone")
    assert contents(out) == contents(tmp_path / "alone")


def test_a_killed_node_of_a_cluster_of_two(tmp_path: Path) -> None:
    """What `nodes.py` does to the whole quickstart, with few cells."""
    arguments = ("--model", "pocket-llama", "--behaviors", "pocket-test", "--limit", "4")
    found = lose_a_node(
        (*arguments, "--attack", "gcg:steps=8,width=16", "--max-new-tokens", "8"), tmp_path
    )
    assert found["the same"] and found["workers killed"] == 1
    assert 2 <= found["records at the kill"] < found["cells"] == found["records alike"] == 4


def test_a_worker_that_hangs_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The actors import the attack from here.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    setup = make_setup(str(make_model(tmp_path / "tiny")), tmp_path / "artefacts")
    said: list[str] = []
    with RayEngine(1, None, 0.0, said.append, deadline=600.0) as engine:
        (task, result), *_ = engine.run(setup, rude_tasks("fine"))
        assert result[0].record.status == "ok"  # type: ignore[union-attr]
        engine._deadline = 1.0
        ((task, result),) = engine.run(setup, rude_tasks("test-0"))
    assert result == ("error", "the worker gave no sign of life for 1 s")
    assert task.cells[0].key == "test-0"
    assert [line.rpartition("; ")[2] for line in said] == ["it is retried once", "given up"]


def test_a_cluster_that_wants_a_token_is_one_line(suite: Suite, tmp_path: Path) -> None:
    told = ["--model", suite.models[0], "--behaviors", suite.behaviors, "--attack", "direct"]
    with head() as (address, env):
        own = {key: value for key, value in env.items() if not key.startswith("RAY_AUTH")}
        run = started((*told, "--engine", "ray", "--address", address), tmp_path / "out", own)
        said = run.communicate()[1].splitlines()[-1]
    assert run.returncode == 2
    assert "it wants a token, and RAY_AUTH_MODE=disabled; set it to token" in said


def test_no_cluster_there_is_one_line(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        run(suite, tmp_path / "out", engine="ray", address="127.0.0.1:1")
