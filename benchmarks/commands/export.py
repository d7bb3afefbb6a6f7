"""The command `export`: its flags, and what it does."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

_FORMATS = ("jailbreakbench", "harmbench", "inspect", "model-card")


def add_export(add: Callable[..., ArgumentParser]) -> None:
    """Adds `export`; `add` is that of the subparsers."""
    sub = add(
        "export",
        help="write results as JailbreakBench, HarmBench, Inspect or model-card files",
        description="Write results in another project's format. All but model-card contain the "
        "prompts and answers of your own records: share them with care.",
    )
    sub.set_defaults(command=export)
    sub.add_argument("folder", type=Path, metavar="DIR", help="results folder")
    sub.add_argument("--format", choices=_FORMATS, required=True, help="target format")
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
    sub.add_argument(
        "--judge", metavar="NAME", help="whose verdicts to export, where several judges were used"
    )
    sub.add_argument(
        "--behaviors",
        metavar="NAME_OR_FILE",
        help="set with the behaviours (default: the shipped sets)",
    )


def export(args: Namespace) -> int:
    """`export`: the files that were written; on stderr what could not be, and a warning."""
    from benchmarks.export import WITHOUT_TEXT
    from benchmarks.export import export as write

    written, notes = write(
        args.folder, args.format, args.out, judge=args.judge, behaviors=args.behaviors
    )
    if args.format not in WITHOUT_TEXT:
        notes = [
            *notes,
            f"{args.out} contains prompts and answers of attacks: share it with care",
        ]
    for note in notes:
        print("reroute:", note, file=sys.stderr)
    for path in written:
        print(path)
    return 0
