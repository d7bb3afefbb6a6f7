"""Text from anywhere as one line that a terminal or a table may show."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with spaces for line breaks, control characters and marks that turn the writing."""
    return "".join(char if char.isprintable() else " " for char in text)


def one_line(text: str) -> str:
    """What of `text` is `printable`, single spaces between its words."""
    return " ".join(printable(text).split())
