"""Who may import whom, and how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 350

#: Modules of the suite that a module may import, by the longest matching prefix. The order is
#: behavior <- prompt <- layout, sites <- interventions, objectives <- model <- directions, refusal,
#: attribution, survey, search <- attack <- the attack files <- registry <- benchmarks.
_TYPES = ("errors", "behavior", "prompt", "sites", "artefact", "interventions")
_CORE = tuple(f"attacks.core.{name}" for name in _TYPES)
ALLOWED = {
    "attacks.core.errors": (),
    "attacks.core.behavior": (),
    "attacks.core.prompt": _CORE[:2],
    "attacks.core.layout": _CORE[:3],
    "attacks.core.sites": (),
    "attacks.core.artefact": (),
    "attacks.core.interventions": ("attacks.core.sites",),
    "attacks.core.objectives": (*_CORE, "attacks.core.objectives"),
    "attacks.core.model": (*_CORE, "attacks.core.model"),
    "attacks.core.states": (*_CORE,),
    "attacks.core.probes": (*_CORE,),
    "attacks.core.refusal": (*_CORE, "attacks.core.states"),
    "attacks.core.directions": (*_CORE, "attacks.core.states", "attacks.core.refusal"),
    "attacks.core.attribution": (
        *_CORE,
        "attacks.core.model",
        "attacks.core.states",
        "attacks.core.refusal",
    ),
    "attacks.core.survey": (
        *_CORE,
        *(f"attacks.core.{name}" for name in ("attribution", "directions", "probes")),
        *(f"attacks.core.{name}" for name in ("refusal", "states")),
    ),
    "attacks.core.search": (*_CORE, "attacks.core.objectives", "attacks.core.search"),
    "attacks.core.plugins": ("attacks.core.errors",),
    "attacks.attack": (*_CORE, "attacks.core.search"),
    "attacks.registry": ("attacks.attack", "attacks.core.plugins", *_CORE),
    "attacks": ("attacks",),
    "benchmarks": ("attacks", "benchmarks"),
}
ATTACK_FILES = sorted(
    path.stem
    for path in (ROOT / "attacks").glob("*.py")
    if path.stem not in ("__init__", "attack", "registry")
)
ALLOWED |= {f"attacks.{name}": ("attacks.core", "attacks.attack") for name in ATTACK_FILES}
HEAVY = {"transformers", "nnsight"}


def sources() -> list[Path]:
    return sorted(
        path
        for package in ("attacks", "benchmarks")
        for path in (ROOT / package).rglob("*.py")
        if "template" not in path.parts
    )


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Modules imported at run time: what stands under TYPE_CHECKING is left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
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
        if not any(within(name, prefix) for prefix in ALLOWED[rule])
    }
    assert not bad, f"{module} may not import {sorted(bad)}"
    if not within(module, "attacks.core.model"):
        assert not HEAVY & {name.partition(".")[0] for name in imports(path)}


@pytest.mark.parametrize("module", ["benchmarks.leaderboard", "benchmarks.cli", "benchmarks.store"])
def test_reading_results_needs_no_torch(module: str) -> None:
    code = (
        f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_no_file_is_long() -> None:
    files = [path for path in ROOT.rglob("*.py") if ".venv" not in path.parts]
    long = {str(path): n for path in files if (n := len(path.read_text().splitlines())) > LONGEST}
    assert not long


def test_nothing_but_timing_reads_a_clock() -> None:
    clocks = ("time.time(", "perf_counter(", "monotonic(", "datetime.now(", "process_time(")
    readers = {
        module_of(path) for path in sources() if any(clock in path.read_text() for clock in clocks)
    }
    assert readers <= {"benchmarks.timing"}


def test_no_remote_code_is_ever_trusted() -> None:
    for path in sources():
        assert "trust_remote_code=True" not in path.read_text(), path
