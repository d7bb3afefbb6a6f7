"""What can go wrong while cells are run, made to go wrong."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from attacks import BadInput, registry
from attacks.attack import Behavior, Step
from attacks.core.model import Model
from benchmarks.cli import main
from benchmarks.harness.cells import Cell, Task
from benchmarks.harness.engines import Engine
from benchmarks.harness.machinery import Machinery
from benchmarks.harness.runner import run
from benchmarks.harness.workers import Pool
from benchmarks.inputs.suites import Suite
from benchmarks.storage.store import Store, read_records
from conftest import ROOT
from runs import (
    SEARCH,
    Scripted,
    command,
    contents,
    make_model,
    make_setup,
    make_suite,
    write_behaviors,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def suite(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """Two short searches."""
    behaviors = write_behaviors(tmp_path_factory.mktemp("behaviors") / "b.jsonl", 2)
    return make_suite(model, behaviors, f"gcg:{SEARCH}", steps=4, limit=2)


@pytest.fixture(scope="module")
def whole(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run(suite, folder)
    return folder


def test_a_second_run_is_told_whose_the_folder_is(suite: Suite, tmp_path: Path) -> None:
    with Store(tmp_path / "out"), pytest.raises(BadInput, match=f"process {os.getpid()} on "):
        run(suite, tmp_path / "out")


def test_a_copy_of_a_folder_in_use_goes_on_as_well(
    suite: Suite, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "elsewhere" / "copied"
    add = Store.add

    def copying(self: Store, *outcome: Any) -> None:
        add(self, *outcome)
        if not copied.exists():
            shutil.copytree(self.folder, copied)

    monkeypatch.setattr(Store, "add", copying)
    assert run(suite, tmp_path / "out", checkpoint=0)
    monkeypatch.undo()
    assert len(read_records(copied)) == 1
    assert run(suite, copied)
    (tmp_path / "out").rename(tmp_path / "moved")
    assert run(suite, tmp_path / "moved")
    assert contents(copied) == contents(tmp_path / "moved") == contents(whole)


def test_a_full_disk_is_one_line_and_costs_nothing_that_is_there(
    suite: Suite, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    # Files may grow to one record and a half, then the system refuses, as on a full disk.
    size = (whole / "records.jsonl").stat().st_size * 3 // 4
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        assert main(command(suite, out)) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("reroute: cannot write into") and len(read_records(out)) == 1
    assert main(command(suite, out)) == 0
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_turns_read_only_costs_nothing_that_is_there(
    suite: Suite,
    whole: Path,
    tmp_path: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the second record on, as when the system remounts a disk after an error."""
    out, opened, real = tmp_path / "out", [], Path.open

    def guarded(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if self.name == "records.jsonl" and mode == "ab":
            opened.append(1)
        # Once when the folder is opened, once for each record.
        if len(opened) > 2 and out in self.parents and set(mode) & set("wax+"):
            raise OSError(number, os.strerror(number), str(self))
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", guarded)
    assert main(command(suite, out)) == 2
    monkeypatch.undo()
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"reroute: cannot write into '{out}': {os.strerror(number)}"
    assert len(read_records(out)) == 1
    assert run(suite, out)
    assert contents(out) == contents(whole)


def test_checkpoints_that_cannot_be_written_cost_nothing(
    suite: Suite, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoints").write_text("in the way")
    assert run(suite, tmp_path / "out", checkpoint=0)
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.parametrize("call", [1, 2, 4])
def test_memory_that_runs_out_in_an_answer_costs_its_cell_for_now(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """In the first or second verification, or in the answers to further candidates."""
    suite = dataclasses.replace(suite, attempts=2)
    assert run(suite, tmp_path / "whole")
    generate, calls = Model.generate, []

    def scarce(self: Model, *args: Any, **kwargs: Any) -> list[str]:
        calls.append(1)
        if len(calls) == call:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(Model, "generate", scarce)
    assert not run(suite, tmp_path / "out", checkpoint=0)
    first, second = read_records(tmp_path / "out")
    assert (first.status, second.status) == ("out_of_memory", "ok")
    assert run(suite, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not list((tmp_path / "out" / "checkpoints").iterdir())


#: What outlives its cell.
LEAKED: list[bytearray] = []


@dataclasses.dataclass(frozen=True)
class Rude(Scripted):
    """Does what no attack should, on the first behaviour."""

    name: ClassVar[str] = "rude"
    broken: ClassVar[bool] = False
    how: str = ""

    def run(self, model: Any, behavior: Behavior, **rest: Any) -> Iterator[Step]:
        if behavior.id == "test-0":
            if self.how == "exit":
                sys.exit("enough")
            if self.how == "generator-exit":
                raise GeneratorExit
            if self.how == "print":
                sys.stdout.write("to stdout\n")
            if self.how == "fork":
                os.fork()
            if self.how == "hang":
                time.sleep(600)
            if self.how == "leak":
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                limit = pages * resource.getpagesize() + 2**28
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
                while True:
                    LEAKED.append(bytearray(2**20))
        yield from super().run(model, behavior, **rest)


@pytest.fixture
def rude(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.ATTACKS.built_in, "rude", "test_faults:Rude")


@pytest.mark.parametrize(
    ("how", "error"), [("exit", "SystemExit: enough"), ("generator-exit", "GeneratorExit")]
)
@pytest.mark.usefixtures("rude")
def test_an_attack_that_exits_costs_its_cell(
    suite: Suite, tmp_path: Path, how: str, error: str
) -> None:
    assert not run(dataclasses.replace(suite, attacks=(f'rude:how="{how}"',)), tmp_path / "out")
    first, second = read_records(tmp_path / "out")
    assert (first.status, first.error, second.status) == ("error", error, "ok")


@pytest.mark.usefixtures("rude")
def test_what_an_attack_prints_is_no_output_of_the_command(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(dataclasses.replace(suite, attacks=('rude:how="print"',)), tmp_path / "out")
    captured = capsys.readouterr()
    assert captured.out == "" and "to stdout" in captured.err


@pytest.mark.usefixtures("rude")
def test_the_child_of_an_attack_that_forks_writes_nothing(suite: Suite, tmp_path: Path) -> None:
    before = os.getpid()
    done = run(dataclasses.replace(suite, attacks=('rude:how="fork"',)), tmp_path / "out")
    assert os.getpid() == before and done
    pid, status = os.wait()
    assert pid != before and os.waitstatus_to_exitcode(status) == 1
    assert len((tmp_path / "out" / "records.jsonl").read_bytes().splitlines()) == 2


def rude_tasks(*names: str, how: str = "hang") -> list[Task]:
    """A task on each of these behaviours; the one on `test-0` goes wrong."""
    return [
        Task((Cell(name, Rude(how=how), Behavior(name, "Paint the harp."), 0, ""),))
        for name in names
    ]


def test_a_deadline_gives_a_single_worker_a_process_of_its_own() -> None:
    def engine(**how: Any) -> Engine:
        return Machinery(**how).start(print, lambda task: nullcontext(lambda steps, loss: None))

    assert engine().in_process and not engine(deadline=60.0).in_process
    assert not engine(workers=2).in_process


def test_a_worker_that_hangs_is_ended(suite: Suite, model: Path, tmp_path: Path) -> None:
    setup = make_setup(str(model), tmp_path)
    tasks = rude_tasks("fine", "test-0")
    said: list[str] = []
    # Longer than a model takes to load, and far shorter than what hangs.
    with Pool(1, said.append, devices=["cpu"], deadline=600.0) as pool:
        results = {task.cells[0].key: result for task, result in pool.run(setup, tasks[:1])}
        pool._deadline = 1.5
        results |= {task.cells[0].key: result for task, result in pool.run(setup, tasks[1:])}
    assert results["fine"][0].record.status == "ok"
    assert results["test-0"] == ("error", "the worker process gave no sign of life for 1.5 s")
    assert re.fullmatch(r".* no sign of life for 1.5 s during rude on test-0; given up", said[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads sizes from /proc")
def test_a_worker_with_a_leak_is_replaced(model: Path, tmp_path: Path) -> None:
    setup = make_setup(str(model), tmp_path)
    processes, statuses = [], {}
    with Pool(1, lambda line: None) as pool:
        for task, result in pool.run(setup, rude_tasks("test-0", "fine", how="leak")):
            assert isinstance(result, list)
            statuses[task.cells[0].key] = result[0].record.status
            processes.append(len(pool._workers))
    assert statuses == {"test-0": "out_of_memory", "fine": "ok"}
    # The first had ended when its result was handed on.
    assert processes == [0, 1]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"engine": "cloud"}, "valid: local, ray"),
        ({"workers": 0}, "valid: 1 or more"),
        ({"deadline": 0.0}, "more than 0"),
        ({"deadline": float("nan")}, "more than 0"),
        ({"gpus": -1.0, "engine": "ray"}, "0 or more"),
        ({"engine": "ray", "workers": "auto"}, "on a Ray cluster, name a number"),
        ({"engine": "ray", "devices": ("cpu",)}, "--devices is for local workers"),
        ({"address": "auto"}, "for --engine ray"),
    ],
)
def test_machinery_that_cannot_be_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        Machinery(**values)


def test_without_ray_it_takes_one_line(
    suite: Suite,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "benchmarks.harness.ray_engine", raising=False)
    assert main(command(suite, tmp_path / "out", "--engine", "ray")) == 2
    assert "pip install 'reroute-bench[ray]'" in capsys.readouterr().err.splitlines()[-1]


def test_nothing_imports_ray_unasked() -> None:
    modules = "benchmarks.harness.runner, benchmarks.harness.workers"
    code = f"import sys, {modules}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
