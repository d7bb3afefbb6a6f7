"""What the commands share: fields from flags, and results that are printed or go into a file."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any


def given(args: Namespace, cls: type[Any]) -> dict[str, Any]:
    """The fields of a dataclass that were given on the command line."""
    fields = [field.name for field in dataclasses.fields(cls)]
    return {name: value for name in fields if (value := getattr(args, name, None)) is not None}


def add_output(sub: ArgumentParser) -> None:
    """`--format` and `--out`."""
    sub.add_argument("--format", choices=("md", "json"), default="md")
    sub.add_argument("--out", type=Path, metavar="FILE", help="write it there")


def show(shown: str, out: Path | None) -> None:
    """Prints it, unless it goes into a file."""
    if out:
        out.write_text(shown, "utf-8")
    else:
        print(shown, end="")
