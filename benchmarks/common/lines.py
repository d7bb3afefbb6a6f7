"""Text from anywhere as one line that a terminal or a table may show."""

from __future__ import annotations


def one_line(text: str) -> str:
    """`text` without line breaks, control characters and marks that turn the writing around."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
