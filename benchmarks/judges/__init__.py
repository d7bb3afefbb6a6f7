"""Judges: what says whether a completion answers a behaviour."""

from benchmarks.judges.judge import Judge, Label, Verdict
from benchmarks.judges.registry import available, default_judge, load_judge

__all__ = ["Judge", "Label", "Verdict", "available", "default_judge", "load_judge"]
