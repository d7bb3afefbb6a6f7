"""Leaderboards and statistics: rows, intervals, comparisons, corrections, figures.

Reads `storage` only; imports no torch.
"""
