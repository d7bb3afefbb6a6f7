"""Pieces of Markdown for the page of an inspection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: An open box, for spaces that would not be seen.
_SPACE = "\u2423"
_HARMLESS = f" -,'{_SPACE}"
#: Characters of a text that are shown.
_LONGEST = 120
#: Rows from which on a table is folded.
LONG = 12


def code(text: str) -> str:
    """Hostile text as one line of code that no Markdown or HTML can come out of.

    Everything but what is surely harmless becomes a character reference, which never is markup,
    not even that of a link or a formula. Spaces at the ends are made visible, what is not
    printable, line ends included, is written as an escape, and long text is cut.
    """
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\u2026"
    inner = text.strip(" ")
    start = len(text) - len(text.lstrip(" "))
    shown = _SPACE * start + inner + _SPACE * (len(text) - start - len(inner))
    return f"<code>{''.join(map(_character, shown))}</code>"


def _character(char: str) -> str:
    if (char.isascii() and char.isalnum()) or char in _HARMLESS:
        return char
    if not char.isprintable():
        char = char.encode("unicode_escape").decode()
    return "".join(f"&#{ord(part)};" for part in char)


def number(value: float | None, digits: int = 2) -> str:
    """Rounded; a dash for what is not there or not a number."""
    # Adding 0.0 turns a negative zero into zero.
    return "-" if value is None or value != value else f"{round(value, digits) + 0.0:.{digits}f}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, text: int = 1) -> str:
    """A table whose first `text` columns are words, to the left, and the others figures."""
    rules = [":--" if index < text else "--:" for index in range(len(headings))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, rules, *rows))


def folded(headings: Sequence[str], rows: Sequence[Sequence[str]], *, text: int = 1) -> str:
    """A table by layer, to be unfolded where it is long: there its picture says more."""
    whole = table(headings, rows, text=text)
    if len(rows) <= LONG:
        return whole
    return f"<details><summary>All {len(rows)} rows</summary>\n\n{whole}\n\n</details>"


def codes(texts: Iterable[str]) -> str:
    """`code` of each."""
    return " ".join(map(code, texts))
