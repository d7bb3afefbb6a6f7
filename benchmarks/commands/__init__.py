"""What the command line does: the flags of each command, and the calls behind them.

`benchmarks.cli` parses; heavy modules are imported by the command that needs them.
"""
