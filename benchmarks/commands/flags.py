"""Shared by the commands: fields from flags, and results that are printed or written to a file."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from argparse import ArgumentParser, Namespace, _ActionsContainer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def given(args: Namespace, cls: type[Any]) -> dict[str, Any]:
    """The fields of a dataclass that were given on the command line."""
    fields = [field.name for field in dataclasses.fields(cls)]
    return {name: value for name in fields if (value := getattr(args, name, None)) is not None}


def add_output(sub: ArgumentParser) -> None:
    """`--format` and `--out`."""
    sub.add_argument("--format", choices=("md", "json"), default="md")
    sub.add_argument("--out", type=Path, metavar="FILE", help="write to this file")


def add_subject(group: _ActionsContainer, train: str, behaviors: str) -> None:
    """Flags for the model's input and how it is loaded; the texts are the help of the two sets."""
    for flag, meta, text in (
        ("--train", "NAME_OR_FILE", train),
        ("--behaviors", "NAME_OR_FILE", behaviors),
        ("--system", "TEXT", "system prompt"),
        ("--date", "YYYY-MM-DD", "date for chat templates that insert today's"),
        ("--device", "D", "auto, cpu, cuda, ..."),
        ("--device-map", "MAP", "spread one model over several GPUs: auto, balanced, ..."),
        ("--dtype", "T", "auto, float32, bfloat16, ..."),
    ):
        group.add_argument(flag, metavar=meta, help=text)


#: Maximum width of drawn tables, in characters.
_WIDTH = 100


def show(shown: str, out: Path | None, *, markdown: bool = False) -> None:
    """Prints it, unless it goes into a file; Markdown is drawn where that is a terminal."""
    if out:
        out.write_text(shown, "utf-8")
    elif markdown and sys.stdout.isatty():
        from benchmarks.boards.brief import draw_markdown  # Imported here because it is slow.

        draw_markdown(shown, console())
    else:
        print(shown, end="")


def then(*lines: str) -> None:
    """Where to look next, for people: nothing where stderr is no terminal."""
    if sys.stderr.isatty():
        print("Next:", "; ".join(lines), file=sys.stderr)


def folded(name: str, text: str, *, indent: int) -> str:
    """A line of a list: at a terminal the text goes on below where it began."""
    line = f"{name:<{indent}}{text}".rstrip()
    if not sys.stdout.isatty():
        return line
    # What cannot be broken, such as a path, stays whole.
    return textwrap.fill(
        line,
        console().width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def console() -> Console:
    """The terminal, at most `_WIDTH` wide."""
    from rich.console import Console

    found = Console(highlight=False)
    found.width = min(_WIDTH, found.width)
    return found
