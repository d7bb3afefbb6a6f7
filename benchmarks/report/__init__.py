"""One self-contained HTML page about the results in folders. Imports no torch.

Rows and intervals are those of `boards`; they are only arranged and drawn here.
"""

from benchmarks.report.page import report

__all__ = ["report"]
