"""The commands about judges: their flags, and what each does."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

from benchmarks.commands.flags import add_output, show, then


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Adds the commands to the command line."""
    sub = add_parser("judge", help="judge recorded answers, without the attacked models")
    _add_folders(sub)
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
    sub = add_parser("calibrate", help="measure the error rates of judges on labelled answers")
    sub.add_argument("judges", nargs="+", metavar="JUDGE", help="name or name:key=value,...")
    sub.add_argument(
        "--cases", type=Path, required=True, metavar="FILE", help="labelled answers (JSONL)"
    )
    sub.add_argument(
        "--for",
        nargs="+",
        type=Path,
        default=[],
        dest="folders",
        metavar="DIR",
        help="results folders whose boards are to be corrected by it",
    )
    add_output(sub)
    sub.set_defaults(command=calibrate)
    sub = add_parser("label", help="write a blinded sheet for human raters, or import their labels")
    _add_folders(sub)
    sub.add_argument("--out", type=Path, metavar="FILE", help="write the sheet there (CSV)")
    sub.add_argument(
        "--sample", type=int, metavar="N", help="number of answers to sample (default: all)"
    )
    sub.add_argument("--seed", type=int, default=0, metavar="S", help="random seed of the sample")
    sub.add_argument("--read", type=Path, metavar="FILE", help="import a completed sheet")
    sub.add_argument("--rater", metavar="NAME", help="who completed it")
    _add_behaviors(sub)
    sub.set_defaults(command=label)
    sub = add_parser(
        "agreement", help="show where judges disagree, and whether attack rankings change"
    )
    _add_folders(sub)
    add_output(sub)
    sub.set_defaults(command=agreement)


def _add_folders(sub: ArgumentParser) -> None:
    sub.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="results folder")


def _add_behaviors(sub: ArgumentParser) -> None:
    sub.add_argument(
        "--behaviors",
        metavar="NAME_OR_FILE",
        help="for records without their behaviour (default: the shipped sets)",
    )


def judge(args: Namespace) -> int:
    """`judge`: 1 when some answers are still unjudged."""
    from benchmarks.judging.passes import judge_folders

    complete = judge_folders(args.folders, args.judges, behaviors=args.behaviors)
    folders = " ".join(map(str, args.folders))
    then(
        f"`reroute leaderboard {folders}` has a row for each judge",
        f"`reroute agreement {folders}` shows where they disagree",
    )
    return 0 if complete else 1


def calibrate(args: Namespace) -> int:
    """`calibrate`: prints the figures, and keeps them where boards are to be corrected."""
    from benchmarks.boards.correction import keep_counts
    from benchmarks.judges import load_judge
    from benchmarks.judging import calibration
    from benchmarks.storage.store import read_records

    cases = calibration.read_cases(args.cases)
    for folder in args.folders:
        read_records(folder)  # Before anything is judged: a folder that is none.
    found = [calibration.calibrate(load_judge(spec), cases) for spec in args.judges]
    for folder in args.folders:
        for each in found:
            keep_counts(folder, each.judge, each.cases, each.counts)
    as_json = args.format == "json"
    shown = calibration.as_json(found) if as_json else calibration.as_markdown(found)
    show(shown, args.out, markdown=not as_json)
    return 0


def label(args: Namespace) -> int:
    """`label`: writes a sheet, or takes one back and says how far the raters agree."""
    from attacks.core.errors import BadInput
    from benchmarks.judging import labels

    if args.sample is not None and args.sample < 1:
        raise BadInput(f"--sample {args.sample}; valid: 1 or more")
    if args.read is None:
        if args.rater is not None:
            raise BadInput("--rater needs --read FILE, the completed sheet")
        sheet, count = labels.export(
            args.folders, sample=args.sample, seed=args.seed, behaviors=args.behaviors
        )
        show(sheet, args.out)
        if args.out:
            print(f"{count} answers; fill in 'success' with yes, no or ?, then: --read {args.out}")
        return 0
    if args.rater is None:
        raise BadInput("--read needs --rater NAME, who completed the sheet")
    identity, count = labels.take_back(
        args.folders, args.read, args.rater, behaviors=args.behaviors
    )
    print(f"{identity}: {count} answers judged")
    for line in labels.agreeing(args.folders, identity):
        print(line)
    return 0


def agreement(args: Namespace) -> int:
    """`agreement`: printed, unless it goes into a file."""
    from benchmarks.boards.agreement import agreement, as_json, as_markdown

    found = agreement(args.folders)
    as_text = as_json if args.format == "json" else as_markdown
    show(as_text(found), args.out, markdown=args.format == "md")
    return 0
