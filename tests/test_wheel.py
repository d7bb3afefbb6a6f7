"""The wheel, installed away from the checkout, brings models, behaviours and suites along."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from conftest import ROOT, SHIPPED

OPTIONS = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index")


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", *OPTIONS, "--wheel-dir", str(folder), str(ROOT))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip("install", *OPTIONS, "--target", str(target), str(built))
    return target


def reroute(installed: Path, *argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # Safe path (-P) and PYTHONPATH: what is imported is the installed copy.
    return subprocess.run(
        [sys.executable, "-P", "-m", "benchmarks.cli", *argv],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )


def test_it_lists_what_it_ships(installed: Path, tmp_path: Path) -> None:
    assert not (installed / "data").exists()
    done = reroute(installed, "models", "--json", cwd=tmp_path)
    assert [item["name"] for item in json.loads(done.stdout)] == [
        *SHIPPED,
        "village-qwen-coder",
        "village-smollm2",
        "village-smollm2-base",
        "village-smollm2-hard",
        "village-smollm2-pairs",
    ]
    suites = json.loads(reroute(installed, "suites", "--json", cwd=tmp_path).stdout)
    assert {"quickstart", "pocket-board"} <= {item["name"] for item in suites}


@pytest.mark.slow
def test_quickstart_runs_from_it(installed: Path, tmp_path: Path) -> None:
    """One behaviour and one step of every attack of the demo, on two of its models."""
    few = ["--limit", "1", "--steps", "1", "--train", "pocket-train[0:24]"]
    few += ["--model", "pocket-llama", "--model", "pocket-llama-raw"]
    done = reroute(installed, "run", "quickstart", *few, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "out/records.jsonl").open()]
    assert {record["status"] for record in records} == {"ok"}
    assert len({(record["model"], record["attack"]) for record in records}) == 2 * 8
    assert "gcg" in done.stdout and "|" in done.stdout


def test_it_holds_types_entry_points_and_data(built: Path) -> None:
    with zipfile.ZipFile(built) as wheel:
        names = set(wheel.namelist())
        (points,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        found = configparser.ConfigParser()
        found.read_string(wheel.read(points).decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert dict(found["console_scripts"]) == project["scripts"]
    assert {"attacks/py.typed", "benchmarks/py.typed"} <= names
    for package in ("attacks", "benchmarks"):
        assert tracked(package) <= names
    for folder in ("behaviors", "suites", "pocket/models", "village/models"):
        files = tracked(f"data/{folder}")
        assert files and {f"benchmarks/{name}" for name in files} <= names


def tracked(folder: str) -> set[str]:
    """What git knows of, or, without git, what is there."""
    done = subprocess.run(
        ["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=False
    )
    there = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    listed = done.stdout.split("\n")[:-1] or [path.relative_to(ROOT).as_posix() for path in there]
    return {name for name in listed if "__pycache__" not in name}
