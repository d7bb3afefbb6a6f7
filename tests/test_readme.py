"""What README shows runs as shown."""

from __future__ import annotations

import json
import re
import shlex
import sys
from types import ModuleType

import matplotlib
import pytest
import torch

from attacks import Artefact, Behavior
from attacks.registry import sources
from benchmarks.cli import _parser
from conftest import ROOT, pocket

README = (ROOT / "README.md").read_text()
DOCS = {path.stem: path.read_text() for path in (ROOT / "docs").glob("*.md")}


def block(text: str) -> str:
    """The only piece of Python in a text."""
    (found,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return str(found)


def test_the_use_from_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    shown = block(DOCS["python"])
    assert len(shown.splitlines()) <= 20
    exec(compile(shown, "python.md", "exec"), {})
    assert "Verdict" in capsys.readouterr().out


@pytest.mark.slow
def test_the_notebook_runs(capsys: pytest.CaptureFixture[str]) -> None:
    cells = json.loads((ROOT / "docs" / "first-look.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells), "a notebook without outputs is reviewed"
    shared: dict[str, object] = {}
    matplotlib.use("Agg")
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), shared)
    said = capsys.readouterr().out
    assert "Verdict" in said
    assert "| pocket-llama | gcg" in said


def test_the_attack_shown_is_complete(behavior: Behavior, monkeypatch: pytest.MonkeyPatch) -> None:
    text = block(README)
    assert len(text.splitlines()) <= 40
    shown = ModuleType("shown")
    monkeypatch.setitem(sys.modules, "shown", shown)
    exec(compile(text, "README", "exec"), shown.__dict__)
    attack = shown.FirstWord(steps=2, width=8)
    rng = torch.Generator().manual_seed(0)
    steps = list(attack.run(pocket("pocket-llama"), behavior, artefact=Artefact(), rng=rng))
    assert len(steps) == 2 and steps[-1].prompts


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{command}:" in makefile


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 200
    for text, folder in ((README, ROOT), *((page, ROOT / "docs") for page in DOCS.values())):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if not target.startswith("https://"):
                assert (folder / target).exists(), target


def test_commands_that_are_shown_parse() -> None:
    """Each `reroute` command in a block of README or docs has only flags that there are."""
    for text in (README, *DOCS.values()):
        for shown in re.findall(r"```\n(.*?)```", text, flags=re.DOTALL):
            for line in shown.replace("\\\n", " ").splitlines():
                command = line.partition(" #")[0].strip()
                if command.startswith("reroute "):
                    _parser().parse_args(shlex.split(command)[1:])


def test_every_attack_has_its_row() -> None:
    for name in sources():
        assert f"| `{name}` |" in DOCS["attacks"]
