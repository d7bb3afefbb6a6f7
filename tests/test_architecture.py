"""Who may import whom, and how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 350

#: What a module may import at run time, by the longest matching prefix; its own package besides.
#: Types first; then what a model is, what it does with plain prompts, how it refuses, and which of
#: its parts do; attacks on top of those, and the harness on top of attacks.
_TYPES = tuple(
    f"attacks.core.{name}"
    for name in (
        *("errors", "behavior", "prompt", "sites", "artefact", "interventions", "state"),
        *("template", "thinking", "weights", "gating", "answer", "parsing", "alike"),
    )
)
_READING = (*_TYPES, "attacks.core.reading")
_REFUSALS = (*_READING, "attacks.core.refusals")
ALLOWED = {
    "attacks.core.errors": (),
    "attacks.core.behavior": (),
    "attacks.core.sites": (),
    "attacks.core.thinking": (),
    "attacks.core.answer": (),
    "attacks.core.parsing": (),
    "attacks.core.alike": (),
    "attacks.core.artefact": (),
    "attacks.core.state": (),
    "attacks.core.prompt": ("attacks.core.errors", "attacks.core.behavior"),
    "attacks.core.template": ("attacks.core.errors",),
    "attacks.core.layout": ("attacks.core.errors", "attacks.core.behavior", "attacks.core.prompt"),
    "attacks.core.interventions": ("attacks.core.errors", "attacks.core.sites"),
    "attacks.core.weights": ("attacks.core.interventions",),
    "attacks.core.gating": _TYPES,
    "attacks.core.lookup": ("attacks.core.errors", "attacks.core.parsing"),
    "attacks.core.objectives": _TYPES,
    "attacks.core.shields": (*_TYPES, "attacks.core.objectives"),
    "attacks.core.model": (*_TYPES, "attacks.core.shields"),
    "attacks.core.reading": _TYPES,
    "attacks.core.refusals": _READING,
    "attacks.core.analysis": (*_REFUSALS, "attacks.core.model"),
    "attacks.core.search": (*_TYPES, "attacks.core.objectives", "attacks.core.shields"),
    "attacks.attack": (
        *_TYPES,
        "attacks.core.layout",
        "attacks.core.search",
        "attacks.core.refusals.verdicts",
    ),
    "attacks.registry": ("attacks.attack", "attacks.composed", "attacks.core.lookup", *_TYPES),
    "attacks": ("attacks",),
    "benchmarks": ("attacks", "benchmarks"),
    "benchmarks.paths": ("attacks.core.errors",),
    "benchmarks.common": (),
    "benchmarks.storage": (
        *("attacks.core.errors", "attacks.core.parsing"),
        *("benchmarks.common", "benchmarks.paths"),
    ),
    "benchmarks.boards": (
        *("attacks.core.errors", "attacks.core.parsing", "benchmarks.paths"),
        *("benchmarks.common", "benchmarks.storage"),
    ),
}
ATTACK_FILES = sorted(
    path.stem
    for path in (ROOT / "attacks").glob("*.py")
    if path.stem not in ("__init__", "api", "attack", "moved", "registry")
)
ALLOWED |= {f"attacks.{name}": ("attacks.core", "attacks.attack") for name in ATTACK_FILES}
HEAVY = {"transformers", "nnsight"}
#: Run by another Python, in an environment that this suite is not part of.
ELSEWHERE = ("template", "peer.py", "peer_nanogcg.py", "peer_ssr.py")


def sources() -> list[Path]:
    return sorted(
        path
        for package in ("attacks", "benchmarks")
        for path in (ROOT / package).rglob("*.py")
        if not set(ELSEWHERE) & set(path.parts)
    )


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, typing: bool = False) -> set[str]:
    """Modules imported at run time; with `typing` also what stands under TYPE_CHECKING."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if not typing and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_imports_go_one_way(path: Path) -> None:
    module = module_of(path)
    rule = max((prefix for prefix in ALLOWED if within(module, prefix)), key=len)
    known = {module_of(other) for other in sources()}
    ours = {name for name in imports(path) if name in known and name != module}
    packages = {"attacks", "attacks.core", "benchmarks"} - set(ALLOWED[rule])
    bad = {
        name
        for name in ours - packages
        if not any(within(name, prefix) for prefix in (rule, *ALLOWED[rule]))
    }
    assert not bad, f"{module} may not import {sorted(bad)}"
    if not within(module, "attacks.core.model"):
        assert not HEAVY & {name.partition(".")[0] for name in imports(path)}


def folder_of(module: str) -> str:
    """The package that a module stands in; a module of the top level stands for itself."""
    names = module.split(".")
    depth = 3 if names[:2] == ["attacks", "core"] else 2
    return ".".join(names[:depth])


@pytest.mark.parametrize("unit", [lambda module: module, folder_of], ids=["modules", "folders"])
def test_imports_make_no_circle(unit: Callable[[str], str]) -> None:
    """Counts what functions import too, and in `benchmarks` what annotations alone need.

    In `attacks.core` lower layers name the model in annotations.
    """
    known = {module_of(path): path for path in sources()}
    uses: dict[str, set[str]] = {unit(module): set() for module in known}
    for module, path in known.items():
        found = imports(path, typing=within(module, "benchmarks")) & set(known)
        # `from package import module` needs the module.
        deeper = {name for name in found if not any(within(o, name) for o in found - {name})}
        uses[unit(module)] |= {unit(name) for name in deeper} - {unit(module)}
    TopologicalSorter(uses).prepare()


def test_every_folder_says_what_it_is_for_and_what_is_elsewhere() -> None:
    """What lives there, a blank line, and what may not."""
    for path in sources():
        if path.name == "__init__.py":
            doc = ast.get_docstring(ast.parse(path.read_text())) or ""
            _, _, limits = doc.lower().partition("\n\n")
            assert re.search(r"\b(no|not|nothing|never|only)\b", limits), path


@pytest.mark.parametrize(
    "module", ["benchmarks.boards.leaderboard", "benchmarks.cli", "benchmarks.storage.store"]
)
def test_reading_results_needs_no_torch(module: str) -> None:
    code = (
        f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_no_file_is_long() -> None:
    environments = {".venv", ".race-venv"}
    files = [path for path in ROOT.rglob("*.py") if not environments & set(path.parts)]
    long = {str(path): n for path in files if (n := len(path.read_text().splitlines())) > LONGEST}
    assert not long


def test_nothing_but_timing_reads_a_clock() -> None:
    clocks = ("time.time(", "perf_counter(", "monotonic(", "datetime.now(", "process_time(")
    readers = {
        module_of(path) for path in sources() if any(clock in path.read_text() for clock in clocks)
    }
    assert readers <= {"benchmarks.harness.timing"}


def test_no_remote_code_is_ever_trusted() -> None:
    for path in sources():
        assert "trust_remote_code=True" not in path.read_text(), path
