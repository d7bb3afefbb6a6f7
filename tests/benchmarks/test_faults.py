"""What can go wrong while cells are run, made to go wrong."""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
from runs import SEARCH, Scripted, contents, make_model, make_setup, make_suite, write_behaviors

#: Of a search that lasts until it is stopped.
LONG = f"random-search:{SEARCH.replace('width=8', 'width=512')},steps=1000000"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def suite(model: Path, tmp_path: Path) -> Suite:
    """Two short searches."""
    return make_suite(
        model, write_behaviors(tmp_path / "b.jsonl", 2), f"gcg:{SEARCH}", steps=4, limit=2
    )


def command(suite: Suite, out: Path, *flags: str) -> list[str]:
    """The command line of an ad-hoc run."""
    given = ["--model", *suite.models, "--behaviors", suite.behaviors, "--out", str(out)]
    attacks = [word for attack in suite.attacks for word in ("--attack", attack)]
    numbers = ["--max-new-tokens", "4", "--limit", str(suite.limit or 1), "--checkpoint", "0"]
    steps = ["--steps", str(suite.steps)] if suite.steps else []
    return ["run", *given, *attacks, *numbers, *steps, *flags]


@contextmanager
def started(argv: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The command in a process, and a group, of its own."""
    code = "import sys; from benchmarks.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until_it_searches(process: subprocess.Popen[str], out: Path) -> None:
    """Waits for the first checkpoint."""
    deadline = time.monotonic() + 300
    while not list((out / "checkpoints").glob("*.safetensors")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "flags", "code"),
    [
        (signal.SIGINT, (), 130),
        (signal.SIGTERM, (), 143),
        (signal.SIGINT, ("--workers", "2"), 130),
    ],
)
def test_a_signal_ends_a_run_that_says_how_to_go_on(
    model: Path, tmp_path: Path, number: int, flags: tuple[str, ...], code: int
) -> None:
    out = tmp_path / "out"
    suite = make_suite(model, write_behaviors(tmp_path / "b.jsonl", 1), LONG, limit=1)
    with started(command(suite, out, *flags)) as process:
        until_it_searches(process, out)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # As a terminal does.
        else:
            process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert process.returncode == code
    assert said.endswith("running the same command again resumes the run\n")
    assert "Traceback" not in said
    # The checkpoint is there, and the folder can be used.
    (path,) = (out / "checkpoints").glob("*.safetensors")
    with Store(out) as store:
        assert not store.records and path.is_file()


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from benchmarks.harness.signals import interruptible\n"
        "with interruptible():\n"
        "    try:\n"
        "        print('ready', flush=True); time.sleep(60)\n"
        "    except KeyboardInterrupt:\n"
        "        print('tidying', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line, number in (("ready\n", signal.SIGINT), ("tidying\n", signal.SIGTERM)):
        assert process.stdout.readline() == line
        process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 143 and said.count("\n") == 1 and "resumes" in said


def test_a_second_run_is_told_whose_the_folder_is(suite: Suite, tmp_path: Path) -> None:
    with Store(tmp_path / "out"), pytest.raises(BadInput, match=f"process {os.getpid()} on "):
        run(suite, tmp_path / "out")


def test_a_copy_of_a_folder_in_use_goes_on_as_well(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    assert run(suite, whole)
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
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(suite, whole)
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


def test_checkpoints_that_cannot_be_written_cost_nothing(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoints").write_text("in the way")
    assert run(suite, tmp_path / "out", checkpoint=0)
    assert run(suite, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


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
