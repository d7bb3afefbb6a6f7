"""Judging as a pass of its own, calibration of judges, and people as judges.

The judges themselves live in `benchmarks.judges`.
"""
