"""Attacks and judges of other packages, installed as users install them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from attacks.core.errors import BadInput
from benchmarks.commands.new_attack import new_attack, new_defense

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "tests" / "plugin_package"


def _install(package: Path, target: Path) -> Path:
    """Installs `package` into the folder `target`, without the network."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    options = ["--disable-pip-version-check", "--no-index", "--target", str(target)]
    subprocess.run([*pip, *options, str(package)], check=True, capture_output=True)
    return target


def _python(*argv: str, path: Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Python with the packages in `path` and the suite importable."""
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, *argv], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A copy, for the build may leave files beside the sources.
    source = shutil.copytree(PLUGIN, tmp_path_factory.mktemp("source") / "plugin")
    return _install(source, tmp_path_factory.mktemp("installed"))


@pytest.mark.parametrize(("command", "name"), [("attacks", "politely"), ("judges", "long-answer")])
def test_a_plugin_is_listed(installed: Path, command: str, name: str) -> None:
    done = _python("-m", "benchmarks.cli", command, "--json", path=installed)
    assert name in {item["name"] for item in json.loads(done.stdout)}, done.stderr


def test_a_plugin_runs_and_judges(installed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = f"--attack politely:word='now' --judge long-answer --limit 2 --out {out}".split()
    command = ["-m", "benchmarks.cli", "run", "--model", "pocket-llama", *flags]
    done = _python(*command, "--behaviors", "pocket-test", path=installed)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    judgements = [json.loads(line) for line in (out / "judgements.jsonl").read_text().splitlines()]
    assert [record["status"] for record in records] == ["ok", "ok"]
    assert all(record["prompts"][0].endswith(" now") for record in records)
    assert {judgement["judge"] for judgement in judgements} == {"long-answer"}
    assert "politely" in done.stdout


def test_two_packages_with_one_name_are_refused(installed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other_attack-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other-attack\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[reroute_bench.attacks]\npolitely = other:Attack\n")
    path = Path(f"{installed}{os.pathsep}{tmp_path}")
    done = _python("-m", "benchmarks.cli", "attacks", path=path)
    assert done.returncode == 2
    assert "'politely' is claimed twice" in done.stderr and done.stderr.count("\n") == 1


def test_a_new_attack_works_as_written(tmp_path: Path) -> None:
    package = tmp_path / "mine"
    written = new_attack("two-words", package)
    assert {path.name for path in written} == {
        "pyproject.toml",
        "README.md",
        "reroute_two_words.py",
        "test_reroute_two_words.py",
    }
    tested = _python("-m", "pytest", "-q", "-p", "no:cacheprovider", path=package, cwd=package)
    assert tested.returncode == 0, tested.stdout
    assert "2 passed" in tested.stdout
    target = _install(package, tmp_path / "installed")
    listed = _python("-m", "benchmarks.cli", "attacks", path=target)
    assert "two-words" in listed.stdout, listed.stderr


@pytest.mark.slow
def test_a_new_defense_works_as_written(tmp_path: Path) -> None:
    package = tmp_path / "mine"
    written = new_defense("too-long", package)
    assert {path.name for path in written} == {
        "pyproject.toml",
        "README.md",
        "reroute_too_long.py",
        "test_reroute_too_long.py",
    }
    tested = _python("-m", "pytest", "-q", "-p", "no:cacheprovider", path=package, cwd=package)
    assert tested.returncode == 0, tested.stdout
    target = _install(package, tmp_path / "installed")
    out = tmp_path / "out"
    flags = f"--attack direct --defense too-long:most=5 --limit 2 --out {out}".split()
    command = ["-m", "benchmarks.cli", "run", "--model", "pocket-llama", *flags]
    done = _python(*command, "--behaviors", "pocket-test", path=target)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert [record["blocked"] for record in records] == [["too-long"], ["too-long"]]
    with pytest.raises(BadInput, match="a defence called 'perplexity'"):
        new_defense("perplexity", tmp_path)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(BadInput, match=r"README\.md' exists already"):
        new_attack("mine", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    with pytest.raises(BadInput, match="exists already"):
        new_attack("mine", tmp_path / "README.md")


def test_the_folder_is_called_after_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {path.parent for path in new_attack("mine")} == {Path("reroute-mine")}


@pytest.mark.parametrize("name", ["", "Mine", "a_b", "-a", "a--b", "1a", "a/b", "a b", "gcg"])
def test_names_that_cannot_be_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="attack"):
        new_attack(name, tmp_path)
