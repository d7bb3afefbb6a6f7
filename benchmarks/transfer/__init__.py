"""Transfer: prompts found on one model, sent to others. Tabulating needs no torch."""

from benchmarks.transfer.matrix import Matrix, as_json, as_markdown, matrices, matrices_of

__all__ = ["Matrix", "as_json", "as_markdown", "matrices", "matrices_of"]
