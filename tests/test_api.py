"""What plugins may import, and the old names of what has moved."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
import warnings
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

import attacks.api
from attacks.core.lookup.declared import declared
from attacks.moved import MOVED

ROOT = Path(__file__).resolve().parents[1]


def aliases() -> dict[str, str]:
    """What is said of names of the core that are types, in the string that follows them."""
    found = {}
    for path in (ROOT / "attacks" / "core").glob("*.py"):
        body = ast.parse(path.read_text("utf-8")).body
        for node, after in pairwise(body):
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
                name = node.targets[0] if isinstance(node, ast.Assign) else node.target
                found[ast.unparse(name)] = ast.unparse(after)
    return found


@pytest.mark.parametrize("name", attacks.api.__all__)
def test_all_public_names_are_documented(name: str) -> None:
    value = getattr(attacks.api, name)
    if not isinstance(value, type) and not inspect.isfunction(value):
        assert aliases().get(name), "a type: say in the next line what it is"
        return
    assert inspect.getdoc(value)
    if not isinstance(value, type):
        return
    members = [
        (key, member)
        for key, member in vars(value).items()
        if not key.startswith("_")
        and (inspect.isroutine(member) or isinstance(member, property | classmethod | staticmethod))
    ]
    # What overrides a method has that one's text.
    bare = [key for key, _ in members if not inspect.getdoc(getattr(value, key))]
    if dataclasses.is_dataclass(value):
        fields = declared(f"{value.__module__}:{value.__name__}").fields
        bare += [field.name for field in fields if not field.doc]
    assert not bare


def test_the_reference_covers_what_is_public_and_nothing_of_the_core() -> None:
    listed = re.findall(r"^::: (\S+)", (ROOT / "docs" / "reference.md").read_text("utf-8"), re.M)
    public = {"attacks.registry", "attacks.api", "benchmarks.judges", "benchmarks.defenses"}
    assert public <= set(listed)
    assert not [name for name in listed if name.startswith("attacks.core")]


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
