"""Judges decide whether a completion answers a behaviour.

One file for each kind. Passes over records and their calibration are in `judging`, not here.
"""

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
