"""Transfer: prompts found on one model, sent to others. Tabulating needs no torch.

Only `transfer.transfer` loads models; nothing here searches for prompts.
"""

from benchmarks.transfer.matrix import Matrix, as_json, as_markdown, matrices, matrices_of

__all__ = ["Matrix", "as_json", "as_markdown", "matrices", "matrices_of"]
