"""What listings read from source files is what the classes say, and needs no torch."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from attacks.core.lookup.declared import Declared, Field, NotDeclared, declared, of_class
from attacks.core.lookup.plugins import Registry
from attacks.registry import ATTACKS, load
from benchmarks.cli import main
from benchmarks.defenses.registry import DEFENSES
from benchmarks.judges.registry import JUDGES
from conftest import ROOT

LISTINGS = ("attacks", "models", "behaviors", "judges", "defenses", "suites")
COMMANDS = [
    ["--help"],
    *([name] for name in LISTINGS),
    ["attacks", "--json"],
    ["defenses", "--json"],
    ["leaderboard", "results/pocket-gcg-best"],
]


def undocumented(fields: tuple[Field, ...]) -> list[Field]:
    """Without what only the source tells: docstrings, and how annotations are written."""
    return [
        dataclasses.replace(field, doc="", annotation="", group=tuple(undocumented(field.group)))
        for field in fields
    ]


def same(one: Declared, other: Declared) -> bool:
    return (
        dict(one.constants) == dict(other.constants)
        and undocumented(one.fields) == undocumented(other.fields)
        and Path(one.path).samefile(other.path)
    )


@pytest.mark.parametrize(
    ("registry", "name"),
    [(registry, name) for registry in (ATTACKS, JUDGES, DEFENSES) for name in registry.built_in],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_sources_declare_what_the_classes_have(registry: Registry, name: str) -> None:
    assert same(declared(registry.built_in[name]), of_class(registry.find(name)))


@pytest.mark.parametrize("argv", COMMANDS, ids=" ".join)
def test_listing_needs_no_torch(argv: list[str]) -> None:
    code = (
        "import sys; from benchmarks.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_importing_attacks_needs_no_torch() -> None:
    code = "import sys, attacks; sys.exit('torch' in sys.modules or not hasattr(attacks, 'load'))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def described(fields: tuple[Field, ...], prefix: str = "") -> dict[str, str]:
    """The text of each parameter, those of groups one by one."""
    found: dict[str, str] = {}
    for field in fields:
        name = f"{prefix}{field.name}"
        found |= described(field.group, f"{name}.") if field.group else {name: field.doc}
    return found


@pytest.mark.parametrize(
    ("registry", "name"),
    [(registry, name) for registry in (ATTACKS, JUDGES, DEFENSES) for name in registry.built_in],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_every_parameter_has_a_text(registry: Registry, name: str) -> None:
    texts = described(declared(registry.built_in[name]).fields)
    assert not [name for name, text in texts.items() if not text.strip()]


@pytest.mark.parametrize("name", ATTACKS.built_in)
def test_every_attack_names_its_source(name: str) -> None:
    doc = declared(ATTACKS.built_in[name]).doc
    assert name == "direct" or re.search(r"arXiv \d{4}\.\d{4,5}", doc)


@pytest.mark.parametrize("listing", LISTINGS)
def test_a_listing_fits_a_terminal_and_loses_nothing(
    listing: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([listing]) == 0
    piped = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main([listing]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert shown.split() == piped.split()


def test_a_terminal_is_told_where_to_look_next(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["leaderboard", str(ROOT / "results" / "pocket-subspace-norm")]
    assert main(argv) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(argv) == 0
    assert f"`reroute report {argv[1]}`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("reroute run quick", {"quickstart"}),
        ("reroute attacks ssr-p", {"ssr-probe"}),
        ("reroute run --model pocket-llama-hard", {f"pocket-llama-hard{at}" for at in (1, 2, 3)}),
        ("reroute run --model m --attack ssr-l", {"ssr-latents"}),
        ("reroute run --judge ph", {"phrases"}),
        ("reroute leaderb", {"leaderboard"}),
    ],
)
def test_the_shell_completes_names(typed: str, offered: set[str], tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    out = tmp_path / "offered"
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(out),
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": typed,
        "COMP_POINT": str(len(typed)),
    }
    command = [sys.executable, "-m", "benchmarks.cli"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    assert {word.strip() for word in out.read_text().split("\n")} == offered


PLUGIN = '''
from dataclasses import dataclass, field
from typing import ClassVar
from elsewhere import Mother, COUNT as many, Options
HERE = ("a", (1, 2))

@dataclass(frozen=True)
class Plain(Mother):
    """What it is."""
    summary: ClassVar[str] = ("in " "two parts")
    inherited: float = -2.5
    constant: tuple = HERE
    imported: int = many
    group: Options = field(default_factory=Options)
    same: Options = Options()
    """Of the same."""

@dataclass(frozen=True)
class Computed(Plain):
    steps: int = len("abc")

@dataclass
class Unknown(list):
    pass

@dataclass
class Needed:
    must: int
'''
ELSEWHERE = """
from dataclasses import dataclass
COUNT = 7
@dataclass(frozen=True)
class Options:
    deep: str = "x"
@dataclass(frozen=True)
class Mother:
    first: int = 1
    inherited: float = 0.0
    '''What it is of.'''
"""


def test_reading_follows_imports_and_refuses_what_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugin_of_a_test.py").write_text(PLUGIN)
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    monkeypatch.syspath_prepend(tmp_path)
    found = declared("plugin_of_a_test:Plain")
    assert "elsewhere" not in sys.modules
    assert found.constants == {"summary": "in two parts"} and found.doc == "What it is."
    assert list(found.params.items()) == [
        *(("first", 1), ("inherited", -2.5), ("constant", ("a", (1, 2))), ("imported", 7)),
        *(("group", {"deep": "x"}), ("same", {"deep": "x"})),
    ]
    assert [field.doc for field in found.fields][:2] == ["", "What it is of."]
    assert found.fields[-1].doc == "Of the same."
    assert declared("plugin_of_a_test:Needed").params == {}
    for name in ("Computed", "Unknown", "Nothing"):
        with pytest.raises(NotDeclared):
            declared(f"plugin_of_a_test:{name}")
    for source in ("no_such_module:X", "no.such:X", "json.nothing:X", "sys:X"):
        with pytest.raises(NotDeclared):
            declared(source)
    import plugin_of_a_test

    assert same(found, of_class(plugin_of_a_test.Plain))
    registry = Registry("thing", "none", "elsewhere:Mother", {"it": "plugin_of_a_test:Computed"})
    assert registry.describe()["it"].params["steps"] == 3


def test_one_attack_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attacks", "gcg"]) == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(load("gcg")):
        assert f"  {field.name}" in shown
    assert "arXiv 2307.15043" in shown and "reroute run --model pocket-llama --attack gcg" in shown
    assert "loss.kind" in shown and "mellowmax" in shown
    assert main(["judges", "rubric"]) == 0
    assert "threshold = 0.5" in capsys.readouterr().out
    assert main(["attacks", "gcg", "--json"]) == 0
    assert [item["name"] for item in json.loads(capsys.readouterr().out)] == ["gcg"]


@pytest.mark.parametrize(
    ("command", "close"),
    [
        ("attacks gcq", "did you mean gcg?"),
        ("run quikstart", "did you mean quickstart?"),
        ("lederboard runs", "did you mean leaderboard?"),
        (
            "run --model pocket-lama --attack direct --behaviors pocket-test --dry-run",
            "pocket-llama",
        ),
        (
            "run --model pocket-llama --attack gcg:step=3 --behaviors pocket-test --dry-run",
            "steps?",
        ),
        ("run --model pocket-llama --attack gcg --behaviors pocket-tst --dry-run", "pocket-test"),
        ("judge results/pocket-board --judge phrase", "did you mean phrases?"),
    ],
)
def test_unknown_names_are_answered_with_the_closest(
    command: str, close: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    line = capsys.readouterr().err
    assert close in line.partition("did you mean")[1] + line.partition("did you mean")[2]
    assert line.count("\n") == 1
