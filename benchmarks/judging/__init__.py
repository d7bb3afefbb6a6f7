"""Judging as a separate pass, calibration of judges, and human judges.

The judges themselves are not here but in `benchmarks.judges`.
"""
