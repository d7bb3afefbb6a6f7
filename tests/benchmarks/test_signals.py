"""Runs that are told to end: once, twice, and what they go on to be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.harness.runner import run
from benchmarks.inputs.suites import Suite
from conftest import ROOT
from runs import (
    SEARCH,
    command,
    contents,
    make_model,
    make_suite,
    started,
    until_it_searches,
    write_behaviors,
)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """A search that lasts for a while."""
    folder = tmp_path_factory.mktemp("suite")
    attack = f"random-search:{SEARCH.replace('width=8', 'width=256')},steps=40"
    behaviors = write_behaviors(folder / "b.jsonl", 1)
    return make_suite(make_model(folder / "tiny"), behaviors, attack, limit=1)


@pytest.fixture(scope="module")
def undisturbed(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert run(suite, folder)
    return folder


@pytest.mark.parametrize(
    ("numbers", "flags", "code"),
    [
        ((signal.SIGINT,), (), 130),
        pytest.param((signal.SIGTERM,), (), 143, marks=pytest.mark.slow),
        pytest.param((signal.SIGINT,), ("--workers", "2"), 130, marks=pytest.mark.slow),
        pytest.param((signal.SIGINT, signal.SIGINT), (), 130, marks=pytest.mark.slow),
    ],
    ids=["interrupt", "terminate", "interrupt-two-workers", "interrupt-twice"],
)
def test_a_run_that_a_signal_ends_goes_on_and_ends_alike(
    suite: Suite,
    undisturbed: Path,
    tmp_path: Path,
    numbers: tuple[int, ...],
    flags: tuple[str, ...],
    code: int,
) -> None:
    out = tmp_path / "out"
    with started(command(suite, out, *flags)) as process:
        until_it_searches(process, out)
        for number in numbers:
            if number == signal.SIGINT:
                os.killpg(process.pid, number)  # As a terminal does.
            else:
                process.send_signal(number)
            time.sleep(0.02)
        _, said = process.communicate(timeout=120)
    # Python itself takes no more signals once it tears down: the second then kills it, which a
    # shell reports as the same code.
    late = [-numbers[1]] if len(numbers) > 1 else []
    assert process.returncode in [code, *late]
    # Of two signals the second may come when all is done.
    ends = (
        "running the same command again resumes the run\n",
        "resumes from the last checkpoint\n",
    )
    assert said.endswith(ends[: len(numbers)]) and "Traceback" not in said
    # The checkpoint is there, and the folder can be used.
    (path,) = (out / "checkpoints").glob("*.safetensors")
    assert not (out / "records.jsonl").read_bytes() and path.is_file()
    assert run(suite, out)
    assert contents(out) == contents(undisturbed) and not path.exists()


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
