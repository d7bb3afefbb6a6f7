"""Modules by the names that they had before version 0.1, for plugins written then: until 0.2.

A finder on `sys.meta_path` answers for the old names alone, with the module of the new name and a
`DeprecationWarning`; nothing is imported before it is asked for.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

_FOLDERS = {
    "attacks.core.reading": "states answers dialogues probes massive",
    "attacks.core.refusals": "coherence directions screen_directions choice checked_direction "
    "verdicts fit_subspace independence abliteration harmfulness own_answers control",
    "attacks.core.analysis": "attribution faithfulness heads transcripts cliff survey experts",
    "attacks.core.lookup": "declared plugins specs",
    "benchmarks.boards": "leaderboard rows columns compare stats success tables",
    "benchmarks.inputs": "behaviors models suites public_sets",
    "benchmarks.storage": "records store entries",
    "benchmarks.harness": "runner timing",
}
#: New names by old ones.
MOVED = {
    f"{folder.rpartition('.')[0]}.{module}": f"{folder}.{module}"
    for folder, modules in _FOLDERS.items()
    for module in modules.split()
} | {
    "attacks.core.refusal": "attacks.core.refusals.openers",
    "attacks.core.refusal_subspace": "attacks.core.refusals.subspace",
    "attacks.core.refusal_addition": "attacks.core.refusals.addition",
}


class _OldNames(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = MOVED[spec.name]
        warnings.warn(
            f"{spec.name} is now {new}; the old name will be removed in version 0.2",
            DeprecationWarning,
            stacklevel=2,
        )
        module = import_module(new)
        self._own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has been run under its new name, and keeps that one's spec."""
        module.__spec__ = self._own


def install() -> None:
    """Answer for the old names, once a process."""
    if not any(isinstance(finder, _OldNames) for finder in sys.meta_path):
        sys.meta_path.append(_OldNames())
