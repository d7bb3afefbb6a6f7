"""What the command line does: the flags of each command, and the calls behind them.

It computes nothing itself: `benchmarks.cli` parses, and heavy modules are imported by the command
that needs them.
"""
