"""What plugins may import, and the old names of what has moved."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

import attacks.api
from attacks.moved import MOVED

ROOT = Path(__file__).resolve().parents[1]


def test_all_public_names_are_there_and_documented() -> None:
    for name in attacks.api.__all__:
        value = getattr(attacks.api, name)
        assert name in ("Messages", "State", "Trace") or value.__doc__, name


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_gives_the_same_module_and_warns(old: str) -> None:
    new = import_module(MOVED[old])
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MOVED[old]}"):
        assert import_module(old) is new
    assert new.__spec__ is not None
    assert new.__spec__.name == MOVED[old]


def test_an_old_name_of_the_harness_needs_no_import_of_attacks() -> None:
    code = "import benchmarks.store; print(benchmarks.store.Store.__module__)"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "benchmarks.storage.store", done.stderr


def test_the_suite_itself_uses_no_old_name() -> None:
    names = "attacks.api, benchmarks.cli, benchmarks.harness.runner, benchmarks.commands.basic"
    code = f"import sys, {names}; from attacks.moved import MOVED; "
    code += "sys.exit(bool(set(MOVED) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_a_module_that_never_was_is_still_missing() -> None:
    with warnings.catch_warnings(), pytest.raises(ModuleNotFoundError):
        import_module("attacks.core.nothing")
