"""Verifying recorded successes: each is regenerated, compared with its record, and judged.

It generates with plain `transformers` calls and not with the code that found the successes.
"""

from benchmarks.verify.claims import PLAIN, Claim, Condition, claims_of
from benchmarks.verify.report import as_json, as_markdown
from benchmarks.verify.verify import Options, verify

__all__ = [
    "PLAIN",
    "Claim",
    "Condition",
    "Options",
    "as_json",
    "as_markdown",
    "claims_of",
    "verify",
]
