"""Judges decide whether a completion answers a behaviour."""

from benchmarks.judges.judge import UNJUDGED, Case, Judge, Label, Said, Verdict
from benchmarks.judges.registry import available, default_judge, load_judge

__all__ = [
    "UNJUDGED",
    "Case",
    "Judge",
    "Label",
    "Said",
    "Verdict",
    "available",
    "default_judge",
    "load_judge",
]
