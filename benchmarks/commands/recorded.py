"""Commands on what runs have recorded: their flags, and what they do."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

from benchmarks.commands.flags import add_output, given, show


def add_commands(add: Callable[..., ArgumentParser]) -> None:
    """Adds `verify` and its like; `add` is that of the subparsers."""
    sub = add("verify", help="regenerate recorded successes in plain transformers")
    sub.set_defaults(command=verify)
    sub.add_argument("folder", type=Path, metavar="DIR", help="results folder")
    sub.add_argument("--model", metavar="M", help="another checkpoint instead of the recorded one")
    sub.add_argument(
        "--also", nargs="+", metavar="DTYPE:BATCH", help="additional conditions, such as bfloat16:8"
    )
    sub.add_argument("--limit", type=int, metavar="N", help="successes per model and attack")
    sub.add_argument(
        "--behaviors",
        metavar="NAME_OR_FILE",
        help="set with the behaviours (default: the shipped sets)",
    )
    sub.add_argument("--device", metavar="D", help="auto, cpu, cuda, ...")
    older = sub.add_argument_group("for records without this information")
    older.add_argument(
        "--train", metavar="NAME_OR_FILE", help="behaviours that artefacts were fitted on"
    )
    older.add_argument("--system", metavar="TEXT", help="system prompt")
    older.add_argument("--max-new-tokens", type=int, metavar="N", help="maximum length of answers")
    add_output(sub)
    sub = add("transfer", help="send recorded prompts to other models and tabulate successes")
    sub.set_defaults(command=transfer)
    sub.add_argument("folder", type=Path, metavar="DIR", help="results folder")
    sub.add_argument(
        "--to",
        nargs="+",
        action="extend",
        default=[],
        metavar="MODEL",
        help="shipped name, folder, Hub id, or openai:model=NAME,url=URL; default: only print the "
        "table",
    )
    sub.add_argument(
        "--out", type=Path, metavar="DIR", help="results folder for the new records (default: DIR)"
    )
    sub.add_argument(
        "--judge",
        action="append",
        dest="judges",
        metavar="SPEC",
        help="name or name:key=value,...; may be repeated",
    )
    sub.add_argument(
        "--behaviors",
        metavar="NAME_OR_FILE",
        help="set with the behaviours (default: the shipped sets)",
    )
    sub.add_argument(
        "--train",
        metavar="NAME_OR_FILE",
        help="behaviours to learn the target models' refusals from",
    )
    sub.add_argument("--attempts", type=int, metavar="K", help="candidates to send per record")
    sub.add_argument("--limit", type=int, metavar="N", help="behaviours per model and attack")
    sub.add_argument("--max-new-tokens", type=int, metavar="N", help="maximum length of answers")
    sub.add_argument("--system", metavar="TEXT", help="system prompt (default: as recorded)")
    sub.add_argument("--device", metavar="D", help="auto, cpu, cuda, ...")
    sub.add_argument("--device-map", metavar="MAP", help="as for run")
    sub.add_argument("--dtype", metavar="T", help="auto, float32, bfloat16, ...")
    sub.add_argument("--date", metavar="YYYY-MM-DD", help="as for run")
    sub.add_argument("--format", choices=("md", "json"), default="md")


def verify(args: Namespace) -> int:
    """`verify`: 0 when every success reproduces, else 1."""
    from benchmarks.verify import PLAIN, Options, as_json, as_markdown
    from benchmarks.verify import verify as run

    findings = run(Options(**{**given(args, Options), "also": tuple(args.also or ())}))
    as_text = as_json if args.format == "json" else as_markdown
    show(as_text(findings), args.out, markdown=args.format == "md")
    return 0 if all(found.reproduces for found in findings if found.condition == PLAIN) else 1


def transfer(args: Namespace) -> int:
    """`transfer`: 1 when some prompts have no answer or no verdict yet."""
    from benchmarks.transfer import as_json, as_markdown, matrices

    complete = True
    if args.to:
        from benchmarks.transfer.transfer import Options  # Here, for it brings torch along.
        from benchmarks.transfer.transfer import transfer as send

        told = given(args, Options)
        told |= {key: tuple(told[key]) for key in ("to", "judges") if key in told}
        complete = send(Options(**told))
    found = matrices(list(dict.fromkeys([args.folder, args.out or args.folder])))
    as_text = as_json if args.format == "json" else as_markdown
    show(as_text(found), None, markdown=args.format == "md")
    return 0 if complete else 1
