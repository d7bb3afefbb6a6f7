"""The commands about judges: their flags, and what each does."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Adds the commands to the command line."""
    sub = add_parser("judge", help="judge what is recorded, without the attacked models")
    sub.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="output of a run")
    sub.add_argument(
        "--judge",
        action="append",
        required=True,
        dest="judges",
        metavar="SPEC",
        help="name or name:key=value,...; may be repeated",
    )
    _add_behaviors(sub)
    sub.set_defaults(command=judge)


def _add_behaviors(sub: ArgumentParser) -> None:
    sub.add_argument(
        "--behaviors",
        metavar="NAME_OR_FILE",
        help="for records that do not keep theirs (default: the shipped sets)",
    )


def judge(args: Namespace) -> int:
    """`judge`: 1 when some answers are still unjudged."""
    from benchmarks.judging import judge_folders

    return 0 if judge_folders(args.folders, args.judges, behaviors=args.behaviors) else 1
