"""Defences: wrappers around a model, and what they cost. Importing this does not import torch.

One file for each. They know no attack; what boards say of them is in `boards`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.defenses.registry import available, defense_hash, load_defense, params_of

if TYPE_CHECKING:
    from attacks.core.artefact import Artefact
    from benchmarks.defenses.defense import REFUSAL, Defense, Stack

__all__ = [
    "REFUSAL",
    "Artefact",
    "Defense",
    "Stack",
    "available",
    "defense_hash",
    "load_defense",
    "params_of",
]


def __getattr__(name: str) -> Any:
    """What needs torch, on first use."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from benchmarks.defenses import defense

    return getattr(defense, name)
