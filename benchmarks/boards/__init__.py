"""Leaderboards and statistics: rows, intervals, comparisons, corrections, pictures.

Reads `storage` alone; imports no torch.
"""
