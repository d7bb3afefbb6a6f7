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
#: behavior <- prompt <- sites <- interventions, weights, objectives <- shields <- model <-
#: directions, refusal and what else is found out about a model, search <- attack <- the attack
#: files, composed <- registry <- benchmarks.
_TYPES = (
    *("errors", "behavior", "prompt", "sites", "artefact", "interventions"),
    *("template", "thinking", "weights"),
)
_CORE = tuple(f"attacks.core.{name}" for name in _TYPES)
ALLOWED = {
    "attacks.core.errors": (),
    "attacks.core.behavior": (),
    "attacks.core.prompt": _CORE[:2],
    "attacks.core.layout": _CORE[:3],
    "attacks.core.sites": (),
    "attacks.core.template": ("attacks.core.errors",),
    "attacks.core.thinking": (),
    "attacks.core.artefact": (),
    "attacks.core.interventions": ("attacks.core.errors", "attacks.core.sites"),
    "attacks.core.weights": ("attacks.core.interventions",),
    "attacks.core.objectives": (*_CORE, "attacks.core.objectives"),
    "attacks.core.shields": (*_CORE, "attacks.core.objectives"),
    "attacks.core.model": (*_CORE, "attacks.core.model", "attacks.core.shields"),
    "attacks.core.control": (*_CORE,),
    "attacks.core.states": (*_CORE,),
    "attacks.core.probes": (*_CORE,),
    "attacks.core.answers": (*_CORE,),
    "attacks.core.refusal": (*_CORE, "attacks.core.answers", "attacks.core.states"),
    "attacks.core.choice": ("attacks.core.errors",),
    "attacks.core.dialogues": (*_CORE,),
    "attacks.core.fit_subspace": (*_CORE, "attacks.core.dialogues"),
    "attacks.core.coherence": (
        *_CORE,
        *(f"attacks.core.{name}" for name in ("answers", "dialogues", "refusal")),
    ),
    "attacks.core.verdicts": (
        *_CORE,
        *(f"attacks.core.{name}" for name in ("answers", "coherence", "dialogues", "refusal")),
    ),
    "attacks.core.independence": (*_CORE, "attacks.core.states"),
    "attacks.core.refusal_addition": (
        *_CORE,
        *(f"attacks.core.{name}" for name in ("answers", "directions", "fit_subspace")),
        *(f"attacks.core.{name}" for name in ("refusal_subspace", "verdicts")),
    ),
    "attacks.core.refusal_subspace": (
        *_CORE,
        *(f"attacks.core.{name}" for name in ("answers", "dialogues", "fit_subspace")),
        "attacks.core.independence",
        *(f"attacks.core.{name}" for name in ("states", "verdicts")),
    ),
    "attacks.core.checked_direction": (
        *_CORE,
        *(f"attacks.core.{name}" for name in ("choice", "directions", "verdicts")),
    ),
    "attacks.core.own_answers": (
        *_CORE,
        *(f"attacks.core.{name}" for name in ("checked_direction", "coherence", "refusal")),
        *(f"attacks.core.{name}" for name in ("refusal_subspace", "verdicts")),
    ),
    "attacks.core.massive": (*_CORE, "attacks.core.states"),
    "attacks.core.screen_directions": (
        *_CORE,
        *(f"attacks.core.{name}" for name in ("refusal", "states")),
    ),
    "attacks.core.directions": (
        *_CORE,
        *(f"attacks.core.{name}" for name in ("choice", "massive", "refusal")),
        *(f"attacks.core.{name}" for name in ("screen_directions", "states")),
    ),
    "attacks.core.abliteration": (
        *_CORE,
        *(f"attacks.core.{name}" for name in ("answers", "choice", "directions")),
        *(f"attacks.core.{name}" for name in ("refusal", "states")),
    ),
    "attacks.core.harmfulness": (*_CORE, "attacks.core.refusal", "attacks.core.states"),
    "attacks.core.gating": (*_CORE,),
    "attacks.core.experts": (
        *_CORE,
        *(f"attacks.core.{name}" for name in ("gating", "refusal", "states")),
    ),
    "attacks.core.attribution": (
        *_CORE,
        "attacks.core.model",
        "attacks.core.states",
        "attacks.core.refusal",
    ),
    "attacks.core.faithfulness": (
        *_CORE,
        "attacks.core.model",
        "attacks.core.states",
        "attacks.core.refusal",
    ),
    "attacks.core.transcripts": (*_CORE, "attacks.core.answers", "attacks.core.refusal"),
    "attacks.core.heads": (
        *_CORE,
        *(f"attacks.core.{name}" for name in ("attribution", "states", "transcripts")),
    ),
    "attacks.core.cliff": (
        *_CORE,
        *(f"attacks.core.{name}" for name in ("attribution", "probes", "states", "transcripts")),
    ),
    "attacks.core.survey": (
        *_CORE,
        *(f"attacks.core.{name}" for name in ("attribution", "checked_direction", "choice")),
        *(f"attacks.core.{name}" for name in ("directions", "own_answers", "probes")),
        *(f"attacks.core.{name}" for name in ("refusal", "states")),
    ),
    "attacks.core.search": (
        *_CORE,
        *("attacks.core.objectives", "attacks.core.search", "attacks.core.shields"),
    ),
    "attacks.core.declared": (),
    "attacks.core.plugins": ("attacks.core.declared", "attacks.core.errors"),
    "attacks.core.specs": ("attacks.core.errors",),
    "attacks.attack": (*_CORE, "attacks.core.layout", "attacks.core.search"),
    "attacks.registry": (
        *("attacks.attack", "attacks.composed", "attacks.core.declared", "attacks.core.plugins"),
        "attacks.core.specs",
        *_CORE,
    ),
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
    environments = {".venv", ".race-venv"}
    files = [path for path in ROOT.rglob("*.py") if not environments & set(path.parts)]
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
