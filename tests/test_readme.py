"""What README shows runs as shown."""

from __future__ import annotations

import re
import sys
from types import ModuleType

import pytest
import torch

from attacks import Artefact, Behavior
from conftest import ROOT, pocket

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_use_from_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(BLOCKS[0].splitlines()) <= 20
    exec(compile(BLOCKS[0], "README", "exec"), {})
    assert "Verdict" in capsys.readouterr().out


def test_the_attack_shown_is_complete(behavior: Behavior, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(BLOCKS[1].splitlines()) <= 40
    shown = ModuleType("shown")
    monkeypatch.setitem(sys.modules, "shown", shown)
    exec(compile(BLOCKS[1], "README", "exec"), shown.__dict__)
    attack = shown.FirstWord(steps=2, width=8)
    rng = torch.Generator().manual_seed(0)
    steps = list(attack.run(pocket("pocket-llama"), behavior, artefact=Artefact(), rng=rng))
    assert len(steps) == 2 and steps[-1].prompts


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{command}:" in makefile
