"""The scripts that train village models, as modules."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from conftest import ROOT

VILLAGE = ROOT / "data" / "village"


def load_scripts(monkeypatch: pytest.MonkeyPatch, *names: str) -> ModuleType:
    """Load the scripts in this order, and return the last.

    The pocket models have a `train` of their own, which must not get in their way.
    """
    monkeypatch.syspath_prepend(ROOT / "data" / "pocket")
    monkeypatch.syspath_prepend(VILLAGE)
    for name in names:
        spec = importlib.util.spec_from_file_location(name, VILLAGE / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return module
