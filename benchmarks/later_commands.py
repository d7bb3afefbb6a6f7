"""Commands on what runs have recorded: their flags, and what they do."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

from benchmarks.flags import add_output, given, show


def add_commands(add: Callable[..., ArgumentParser]) -> None:
    """Adds `verify` and its like; `add` is that of the subparsers."""
    sub = add("verify", help="generate recorded successes anew, in plain transformers")
    sub.set_defaults(command=verify)
    sub.add_argument("folder", type=Path, metavar="DIR", help="output of a run")
    sub.add_argument("--model", metavar="M", help="another checkpoint, as a cell of transfer")
    sub.add_argument(
        "--also", nargs="+", metavar="DTYPE:BATCH", help="further conditions, such as bfloat16:8"
    )
    sub.add_argument("--limit", type=int, metavar="N", help="successes per model and attack")
    sub.add_argument("--behaviors", metavar="NAME_OR_FILE", help="default: the shipped sets")
    sub.add_argument("--device", metavar="D", help="auto, cpu, cuda, ...")
    older = sub.add_argument_group("for records that do not say")
    older.add_argument("--train", metavar="NAME_OR_FILE", help="what artefacts were fitted on")
    older.add_argument("--system", metavar="TEXT", help="system prompt")
    older.add_argument("--max-new-tokens", type=int, metavar="N", help="length of the answers")
    add_output(sub)


def verify(args: Namespace) -> int:
    """`verify`: 0 when every success reproduces, else 1."""
    from benchmarks.verify import PLAIN, Options, as_json, as_markdown
    from benchmarks.verify import verify as run

    findings = run(Options(**{**given(args, Options), "also": tuple(args.also or ())}))
    show(as_json(findings) if args.format == "json" else as_markdown(findings), args.out)
    return 0 if all(found.reproduces for found in findings if found.condition == PLAIN) else 1
