"""Attacks on chat models; `attacks.load("gcg", steps=100)` makes one."""

from attacks.attack import Artefact, Attack, Behavior, Step, ThreatModel
from attacks.core.errors import BadInput
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
