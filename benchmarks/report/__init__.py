"""One self-contained HTML page about the results in folders. Imports no torch."""

from benchmarks.report.page import report

__all__ = ["report"]
