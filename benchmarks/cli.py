"""The command line: parses, calls the function behind each command, and prints."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

from attacks.core.errors import BadInput, suggestion
from benchmarks.commands import basic, judging, recorded
from benchmarks.commands.completion import complete
from benchmarks.commands.export import add_export
from benchmarks.commands.flags import add_output, add_subject
from benchmarks.commands.inspecting import add_inspect, add_tokens
from benchmarks.common.lines import one_line
from benchmarks.harness.signals import Terminated

_EXAMPLES = """\
examples:
  reroute run quickstart                          attack the shipped pocket models
  reroute attacks gcg                             describe an attack and its parameters
  reroute run --model MODEL --attack gcg --attack ssr-probe \\
    --behaviors jailbreakbench-harmful --train xstest --limit 20 --out runs/mine
  reroute leaderboard runs/mine                   print the leaderboard again
  reroute report runs/mine --out report.html      write one HTML page with figures
"""

_GO_ON = "interrupted; finished work is kept, and running the same command again resumes the run"


class _UsageError(Exception):
    """Arguments that do not parse."""


class _Parser(argparse.ArgumentParser):
    """Reports bad arguments in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            choices = re.findall(r"[\w-]+", found[2])
            message += suggestion(found[1], choices)
        raise _UsageError(f"{message} (see '{self.prog} --help')")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0 on success, 2 with one line on stderr for bad input."""
    try:
        parser = _parser()
        if "_ARGCOMPLETE" in os.environ:
            complete(parser)
        args = parser.parse_args(argv)
        code: int = args.command(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as interrupt:
        return _fail(_GO_ON, 143 if isinstance(interrupt, Terminated) else 130)
    except BrokenPipeError:
        # The reader closed the pipe. Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (_UsageError, BadInput, OSError) as error:
        return _fail(str(error), 2)


def _fail(message: str, code: int) -> int:
    print("reroute:", one_line(message), file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="reroute",
        description="An adversarial attack benchmark for chat models.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, *, help: str, description: str = "") -> argparse.ArgumentParser:
        """A command whose own help also says what it does."""
        text = description or f"{help[0].upper()}{help[1:]}."
        return commands.add_parser(name, help=help, description=text)

    for name, listing in basic.LISTINGS.items():
        sub = add(name, help=f"list the available {name.replace('defenses', 'defences')}")
        sub.add_argument("--json", action="store_true", help="print JSON: a list of objects")
        sub.set_defaults(command=basic.list_names, listing=listing)
        if name in basic.EXPLAINED:
            sub.add_argument("name", nargs="?", metavar="NAME", help="describe this one in full")
            sub.set_defaults(command=basic.explain, kind=name)
        if name == "models":
            sub.add_argument(
                "--check",
                nargs="*",
                metavar="NAME",
                help="recompute every figure on the models' cards from their weights",
            )
            sub.set_defaults(command=basic.models)
    _add_run(add("run", help="run a suite, or attacks on a model, and print the leaderboard"))
    together = add("merge", help="combine the results of several shards or runs in one folder")
    together.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="results folder")
    together.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the combined results"
    )
    together.set_defaults(command=basic.merge)
    recorded.add_commands(add)
    judging.add(add)
    add_export(add)
    board = add("leaderboard", help="print the leaderboard of one or more results folders")
    board.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="results folder")
    board.add_argument(
        "--format",
        choices=("md", "csv", "json"),
        help="default: a compact table in a terminal, otherwise md",
    )
    board.add_argument("--explain", action="store_true", help="explain the columns")
    board.add_argument("--out", type=Path, metavar="FILE", help="write to this file")
    board.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="plot success against the over-refusal of defences",
    )
    board.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="insert it between the leaderboard markers of this file",
    )
    board.set_defaults(command=basic.leaderboard)
    page = add("report", help="write one HTML page about one or more results folders")
    page.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="results folder")
    page.add_argument(
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="default: report.html",
    )
    page.add_argument(
        "--behaviors", metavar="NAME_OR_FILE", help="set with the categories of the behaviours"
    )
    page.add_argument(
        "--with-completions", action="store_true", help="include prompts and answers in the page"
    )
    page.set_defaults(command=basic.report)
    pair = add("compare", help="compare attacks with a base attack, paired over behaviours")
    pair.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="results folder")
    pair.add_argument(
        "--base", required=True, metavar="ATTACK", help="base attack, named as on the leaderboard"
    )
    add_output(pair)
    pair.set_defaults(command=basic.compare)
    front = add("pareto", help="show the refusal-damage trade-offs that abliteration chose from")
    front.add_argument("folder", type=Path, metavar="DIR", help="results folder")
    front.set_defaults(command=basic.pareto)
    add_inspect(add)
    add_tokens(add)
    for kind, what in (("attack", "attack"), ("defense", "defence")):
        new = add(
            f"new-{kind}", help=f"create a plugin package with a working {what} to start from"
        )
        new.add_argument("name", metavar="NAME", help=f"name of the {what}")
        new.add_argument(
            "folder",
            nargs="?",
            type=Path,
            metavar="DIR",
            help="folder to create (default: named after the package)",
        )
        new.set_defaults(command=basic.new, kind=kind)
    return parser


def _add_run(sub: argparse.ArgumentParser) -> None:
    """The flags of `run`. A flag that is not given leaves the suite's setting as it is."""
    sub.set_defaults(command=basic.run)
    sub.add_argument("suite", nargs="?", metavar="SUITE", help="a shipped suite or a TOML file")
    what = sub.add_argument_group("what to run (without a suite, or overriding its settings)")
    for flag, field, meta, text in (
        ("--model", "models", "NAME", "shipped name, folder or Hub id; may be repeated"),
        (
            "--attack",
            "attacks",
            "SPEC",
            "name or name:key=value,...; A+B: A on the model as changed by B",
        ),
        (
            "--defense",
            "defense",
            "SPEC",
            "name or name:key=value,...; A+B combines; none: no defence",
        ),
        (
            "--judge",
            "judges",
            "NAME",
            "default: reference where behaviours have references, otherwise phrases",
        ),
    ):
        what.add_argument(flag, action="append", dest=field, metavar=meta, help=text)
    what.add_argument(
        "--adaptivity",
        nargs="+",
        choices=("static", "adaptive"),
        help="whether attacks know of the defence (default: both, where it matters)",
    )
    add_subject(what, "behaviours to fit on", "behaviours to attack")
    for flag, text in (
        ("--limit", "number of behaviours"),
        ("--steps", "steps of every search (default: each attack's own)"),
        ("--attempts", "candidates answered and judged for each behaviour (k of ASR@k)"),
        ("--max-new-tokens", "maximum length of answers"),
        ("--samples", "sampled answers in addition to the greedy one"),
    ):
        what.add_argument(flag, type=int, metavar="N", help=text)
    what.add_argument(
        "--preset",
        metavar="P",
        help="size of the searches: quick (16 steps of 64 candidates), standard (100 of 256), "
        "paper (500 of 512)",
    )
    what.add_argument("--seed", dest="seeds", type=int, nargs="+", metavar="S", help="random seeds")
    what.add_argument("--temperature", type=float, metavar="T", help="of sampled answers")
    what.add_argument("--top-p", type=float, metavar="P", help="nucleus size of sampled answers")
    what.add_argument("--seconds", type=float, metavar="X", help="time budget of each search")
    what.add_argument("--stop", choices=("never", "first-success"), help="when a search ends")
    what.add_argument(
        "--harmless",
        action="store_true",
        default=None,
        help="also run harmless twins, with attacks that do not search",
    )
    how = sub.add_argument_group("how to run it")
    how.add_argument("--out", type=Path, metavar="DIR", help="results folder (default: runs/SUITE)")
    how.add_argument(
        "--workers",
        type=_number_or_auto,
        default=1,
        metavar="W",
        help="cells to run at a time; auto: as many as fit",
    )
    how.add_argument(
        "--together",
        type=_number_or_auto,
        default=1,
        metavar="N",
        help="searches that share their passes, for devices that one cannot fill; auto: measured",
    )
    how.add_argument("--engine", default="local", metavar="E", help="local (default) or ray")
    how.add_argument("--devices", metavar="D,D,...", help="devices of the local workers, in turn")
    how.add_argument("--address", metavar="A", help="of a Ray cluster (default: start one)")
    how.add_argument("--gpus", type=float, metavar="X", help="GPUs of a Ray worker, or a fraction")
    how.add_argument("--shard", metavar="I/N", help="run only the I-th of N parts (see merge)")
    how.add_argument(
        "--deadline",
        type=float,
        metavar="X",
        help="seconds without a step after which a worker is replaced (default: 3600 for workers "
        "that are processes of their own; one worker is, if this is given)",
    )
    how.add_argument("--artefacts", type=Path, metavar="DIR", help="reuse fitted values from here")
    how.add_argument(
        "--checkpoint",
        type=float,
        default=10.0,
        metavar="X",
        help="seconds between checkpoints (default: 10)",
    )
    how.add_argument(
        "--dry-run",
        action="store_true",
        help="list the cells and estimate the time, without running",
    )


def _number_or_auto(text: str) -> int | str:
    """The value of `--workers` or of `--together`."""
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}'; valid: a number, or auto") from None


def _version() -> str:
    try:
        return version("reroute-bench")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
