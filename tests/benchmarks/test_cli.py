"""The command line: what it prints, its exit codes, and one line for whatever is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.boards.leaderboard import END, START
from benchmarks.cli import main
from benchmarks.commands import basic as commands
from benchmarks.harness import runner
from benchmarks.inputs.suites import Suite

ROOT = Path(__file__).parents[2]
ATTACKS = {"direct", "random-search", "gcg", "ssr-probe", "refusal-tokens", "refusal-direction"}
ATTACK = ["--attack", "direct", "--out", "o"]
AD_HOC = ["run", "--model", "pocket-llama", "--behaviors", "pocket-test"]


def _error(capsys: pytest.CaptureFixture[str], argv: Sequence[str]) -> str:
    """The one line on stderr that goes with exit code 2."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("reroute: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("command", "some"),
    [
        ("attacks", ATTACKS),
        ("models", {"pocket-llama"}),
        ("behaviors", {"pocket-test", "pocket-train", "advbench", "xstest"}),
        ("judges", {"reference", "phrases", "target"}),
        ("suites", set()),
    ],
)
def test_listings(command: str, some: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert some <= {item["name"] for item in found}
    assert all(isinstance(item["summary"], str) for item in found)
    assert main([command]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [item["name"] for item in found]
    # Aligned: every summary begins in the same column.
    starts = [
        line.index(item["summary"])
        for line, item in zip(lines, found, strict=True)
        if item["summary"]
    ]
    assert len(set(starts)) <= 1


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "COMMAND"),
        (["frobnicate"], "frobnicate"),
        (["run", "--limit", "many", "x"], "--limit"),
        (["run", "--stop", "soon", "x"], "--stop"),
        (["run"], "--model, --attack, --behaviors, --out"),
        (["run", "nowhere"], "unknown suite 'nowhere'"),
        ([*AD_HOC, "--attack", "nothing", "--out", "o"], "unknown attack 'nothing'; valid: ab"),
        ([*AD_HOC, "--attack", "gcg:stepz=1", "--out", "o"], "no parameter 'stepz'; valid:"),
        ([*AD_HOC, "--attack", "gcg:steps=", "--out", "o"], "TOML"),
        ([*AD_HOC, "--attack", "direct", "--judge", "nobody", "--out", "o"], "judge 'nobody'"),
        ([*AD_HOC, "--attack", "direct", "--limit", "0", "--out", "o"], "'limit'"),
        ([*AD_HOC, "--attack", "direct", "--workers", "0", "--out", "o"], "workers"),
        (["run", "--model", "./no", "--behaviors", "pocket-test", *ATTACK], "no such folder"),
        (["run", "--model", "pocket-llama", "--behaviors", "no", *ATTACK], "behaviour set 'no'"),
        (["leaderboard"], "DIR"),
        (["leaderboard", "nowhere"], "records.jsonl"),
        (["leaderboard", "nowhere", "--format", "xml"], "xml"),
        (["new-attack", "Bad Name"], "attack name 'Bad Name'"),
        (["new-attack", "gcg"], "there is an attack called 'gcg' already"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    argv: list[str],
    reason: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reason in _error(capsys, argv)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Suite, Path, dict[str, object]]]:
    """What `run` would have run."""
    calls: list[tuple[Suite, Path, dict[str, object]]] = []

    def run(suite: Suite, out: Path, **how: object) -> bool:
        calls.append((suite, out, how))
        out.mkdir(parents=True)
        (out / "records.jsonl").touch()
        return False

    monkeypatch.setattr(runner, "run", run)
    return calls


def test_flags_make_a_suite(
    started: list[tuple[Suite, Path, dict[str, object]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    flags = (
        "--attack gcg:slots=3 --attack direct --train pocket-train --judge phrases --limit 5 "
        "--seed 1 2 --steps 7 --seconds 1.5 --stop first-success --attempts 3 --max-new-tokens 9 "
        "--system Hello --workers 2 --device cpu --dtype float32 --harmless"
    )
    assert main([*AD_HOC, *flags.split(), "--out", str(out), "--artefacts", "a"]) == 0
    ((suite, where, how),) = started
    assert suite == Suite(
        name="ad-hoc",
        models=("pocket-llama",),
        attacks=("gcg:slots=3", "direct"),
        behaviors="pocket-test",
        train="pocket-train",
        judges=("phrases",),
        limit=5,
        seeds=(1, 2),
        steps=7,
        seconds=1.5,
        stop="first-success",
        attempts=3,
        max_new_tokens=9,
        system="Hello",
        harmless=True,
        device="cpu",
        dtype="float32",
    )
    assert where == out
    given = {"workers": 2, "artefacts": Path("a"), "dry_run": False}
    assert {name: how[name] for name in given} == given
    captured = capsys.readouterr()
    assert captured.out == "No records.\n"
    assert "some cells failed" in captured.err


def test_a_suite_is_named_and_may_be_changed(
    started: list[tuple[Suite, Path, dict[str, object]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(
        'models = ["m"]\nattacks = ["direct"]\nbehaviors = "b"\nlimit = 9\nsteps = 4\n'
    )
    assert main(["run", "mine.toml", "--limit", "2"]) == 0
    ((suite, out, _),) = started
    assert (suite.name, suite.limit, suite.steps, suite.seeds) == ("mine", 2, 4, (0,))
    assert out == Path("runs/mine")


def test_interruption_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupt)
    assert main([*AD_HOC, "--attack", "direct", "--out", "o"]) == 130
    assert "running the same command again resumes" in capsys.readouterr().err


def test_faults_of_the_program_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[dict[str, object]]:
        raise ValueError("a bug")

    monkeypatch.setitem(commands.LISTINGS, "judges", fail)
    with pytest.raises(ValueError, match="a bug"):
        main(["judges"])


def test_leaderboard_goes_where_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "records.jsonl").touch()
    readme = tmp_path / "README.md"
    readme.write_bytes(f"a\r\n{START}\nold\n{END}\r\n".encode())
    assert main(["leaderboard", str(tmp_path), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    out = tmp_path / "board.csv"
    flags = ["--format", "csv", "--out", str(out), "--readme", str(readme)]
    assert main(["leaderboard", str(tmp_path), *flags]) == 0
    assert capsys.readouterr().out == ""
    assert out.read_text().startswith("model,attack,params")
    assert readme.read_bytes() == f"a\r\n{START}\nNo records.\n{END}\r\n".encode()


def test_files_that_cannot_be_written_or_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "records.jsonl").touch()
    folder = str(tmp_path)
    assert "no/where" in _error(capsys, ["leaderboard", folder, "--out", f"{folder}/no/where"])
    assert "README" in _error(capsys, ["leaderboard", folder, "--readme", f"{folder}/README"])


def test_a_closed_pipe_is_harmless() -> None:
    command = f"{sys.executable} -m benchmarks.cli behaviors --json"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | true"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_help_is_quick_and_lists_the_commands() -> None:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cli", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert time.perf_counter() - started < 5
    for command in (*commands.LISTINGS, "run", "leaderboard", "new-attack"):
        assert command in done.stdout
