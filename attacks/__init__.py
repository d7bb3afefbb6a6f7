"""Attacks on chat models; `attacks.load("gcg", steps=100)` makes one.

One file for each technique; a loop or a loss is not one and belongs in `core`. The names below are
imported on first use, because most of them import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from attacks import moved
from attacks.core.errors import BadInput

if TYPE_CHECKING:
    from attacks.attack import Artefact, Attack, Behavior, Step, ThreatModel
    from attacks.registry import available, load, parse_spec

__all__ = [
    "Artefact",
    "Attack",
    "BadInput",
    "Behavior",
    "Step",
    "ThreatModel",
    "available",
    "load",
    "parse_spec",
]

_REGISTRY = ("available", "load", "parse_spec")


moved.install()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'attacks' has no attribute '{name}'")
    module = import_module("attacks.registry" if name in _REGISTRY else "attacks.attack")
    return getattr(module, name)
