"""What each command does; heavy modules are imported by the command that needs them."""

from __future__ import annotations

import dataclasses
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attacks.core.errors import BadInput
from benchmarks.commands.flags import folded, given, show, then
from benchmarks.common.lines import printable

if TYPE_CHECKING:
    from attacks.core.lookup.declared import Declared
    from benchmarks.boards.leaderboard import Format
    from benchmarks.boards.rows import Row

#: What `attacks` tells of each, beside its name and parameters.
_ATTACK = ("summary", "threat_model", "needs_train", "searches")

#: What `defenses` tells of each.
_DEFENSE = ("summary", "adapts", "changes", "needs_train")

Listing = Callable[[], list[dict[str, Any]]]


def _attacks() -> list[dict[str, Any]]:
    from attacks.registry import describe

    return [
        {
            "name": name,
            **_facts("attack", name, found, _ATTACK),
            "params": found.params,
        }
        for name, found in describe().items()
    ]


def _models() -> list[dict[str, Any]]:
    from benchmarks.inputs.models import names

    return _named(names())


def _behaviors() -> list[dict[str, Any]]:
    from benchmarks.inputs.behaviors import names

    return _named(names())


def _judges() -> list[dict[str, Any]]:
    from benchmarks.judges.registry import JUDGES

    return [
        {"name": name, **_facts("judge", name, found, ("summary",))}
        for name, found in JUDGES.describe().items()
    ]


def _defenses() -> list[dict[str, Any]]:
    from benchmarks.defenses.registry import DEFENSES

    return [
        {
            "name": name,
            **_facts("defence", name, found, _DEFENSE),
            "params": found.params,
        }
        for name, found in DEFENSES.describe().items()
    ]


def _facts(kind: str, name: str, found: Declared, keys: Sequence[str]) -> dict[str, Any]:
    """What a class, maybe of another package, declares under these names.

    Raises:
        BadInput: nothing under one of them.
    """
    for key in keys:
        if key not in found.constants:
            raise BadInput(f"{kind} '{name}' ({found.path}) declares no '{key}'")
    return {key: found.constants[key] for key in keys}


def _suites() -> list[dict[str, Any]]:
    from benchmarks.inputs.suites import suite_names

    return _named(suite_names())


def _named(summaries: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "summary": summary} for name, summary in summaries.items()]


LISTINGS: dict[str, Listing] = {
    "attacks": _attacks,
    "models": _models,
    "behaviors": _behaviors,
    "judges": _judges,
    "defenses": _defenses,
    "suites": _suites,
}


#: Listings whose names `explain` tells more of.
EXPLAINED = ("attacks", "judges", "defenses")


def explain(args: Namespace) -> int:
    """`attacks NAME`, `judges NAME`, ...: one of them in full; the list without a name."""
    if args.name is None or args.json:
        return list_names(args)
    from attacks.registry import ATTACKS
    from benchmarks.commands.explain import explain as told
    from benchmarks.defenses.registry import DEFENSES
    from benchmarks.judges.registry import JUDGES

    describe = {
        "attacks": ATTACKS.describe,
        "judges": JUDGES.describe,
        "defenses": DEFENSES.describe,
    }[args.kind]
    print(told(args.kind.removesuffix("s"), args.name, describe()), end="")
    return 0


def list_names(args: Namespace) -> int:
    """`attacks`, `models`, ...: one aligned line each, or JSON."""
    found = args.listing()
    if wanted := getattr(args, "name", None):
        found = [item for item in found if item["name"] == wanted]
    if args.json:
        print(json.dumps(found, indent=2, default=repr))
        return 0
    width = max((len(item["name"]) for item in found), default=0)
    for item in found:
        name, summary = printable(item["name"]), printable(item["summary"])
        print(folded(name, summary, indent=width + 2))
    return 0


def models(args: Namespace) -> int:
    """`models`, and `models --check`: 1 when a figure on a card is not what the weights give."""
    if args.check is None:
        return list_names(args)
    from benchmarks.inputs.models import names
    from benchmarks.studies import cards

    return 0 if cards.check(args.check or list(names())) else 1


def run(args: Namespace) -> int:
    """`run`: the suite with the settings given on the command line, and then its leaderboard."""
    from benchmarks.harness import runner
    from benchmarks.harness.signals import interruptible
    from benchmarks.inputs.suites import Suite, load_suite, suite_from

    told = {key: value for key, value in given(args, Suite).items() if key != "name"}
    if args.suite:
        base = dataclasses.asdict(load_suite(args.suite))
    else:
        base = {"name": "ad-hoc"}
        needed = {"--model": "models", "--attack": "attacks", "--behaviors": "behaviors"}
        missing = [flag for flag, name in needed.items() if name not in told]
        missing += [] if args.out or args.dry_run else ["--out"]
        if missing:
            raise BadInput(f"run: name a suite, or add {', '.join(missing)}")
    suite = suite_from({**base, **told}, "command line")
    out = args.out or Path("runs") / suite.name
    with interruptible():
        complete = runner.run(
            suite,
            out,
            workers=args.workers,
            together=args.together,
            artefacts=args.artefacts,
            dry_run=args.dry_run,
            checkpoint=args.checkpoint,
            shard=args.shard,
            engine=args.engine,
            devices=tuple(args.devices.split(",")) if args.devices else (),
            deadline=args.deadline,
            address=args.address,
            gpus=args.gpus,
        )
    if args.dry_run:
        return 0
    from benchmarks.boards.rows import read_rows
    from benchmarks.harness.plan import split_judges

    if later := split_judges(suite.judges)[1]:
        # Here, when no attacked model is in memory any more.
        from benchmarks.judging.passes import judge_folders

        judge_folders([out], later)

    show_boards(read_rows([out]))
    print(
        f"Next: `reroute leaderboard {out} --explain` explains the columns, `reroute report "
        f"{out}` writes an HTML report.",
        file=sys.stderr,
    )
    if not complete:
        message = f"some cells failed: see 'status' and 'error' in {out / 'records.jsonl'}"
        print("reroute:", message, file=sys.stderr)
    return 0


def merge(args: Namespace) -> int:
    """`merge`: says what there is now."""
    from benchmarks.harness.merge import merge

    added = merge(args.folders, args.out)
    print(f"{added} records added to {args.out}")
    then(f"`reroute leaderboard {args.out}` prints its boards")
    return 0


def leaderboard(args: Namespace) -> int:
    """`leaderboard`: printed, unless it goes into a file."""
    from benchmarks.boards.leaderboard import read_rows, render, update_block

    rows = read_rows(args.folders)
    if args.plot:
        from benchmarks.boards.defense_plot import draw

        draw(rows, args.plot)
    if args.readme:
        # Read and write the line ends as they are.
        text = args.readme.read_bytes().decode()
        args.readme.write_bytes(update_block(text, render(rows, "md")).encode())
    if args.out or not (args.readme or args.plot):
        show_boards(rows, args.format, args.out, explain=args.explain)
    folders = " ".join(map(str, args.folders))
    explained = [] if args.explain else ["`--explain` explains the columns"]
    then(*explained, f"`reroute report {folders}` writes an HTML report")
    return 0


def show_boards(
    rows: Sequence[Row],
    style: Format | None = None,
    out: Path | None = None,
    *,
    explain: bool = False,
) -> None:
    """Boards in a format that was asked for, else narrow ones at a terminal, else Markdown."""
    if style is None and out is None and sys.stdout.isatty():
        from benchmarks.boards.brief import draw
        from benchmarks.commands.flags import console

        draw(rows, console(), explain=explain)
    else:
        from benchmarks.boards.leaderboard import render

        show(render(rows, style or "md"), out)


def report(args: Namespace) -> int:
    """`report`: writes the page and says where; warns of one with prompts and answers."""
    from benchmarks.report import report

    report(args.folders, args.out, completions=args.with_completions, behaviors=args.behaviors)
    if args.with_completions:
        message = f"{args.out} contains prompts and answers of attacks: share it with care"
        print("reroute:", message, file=sys.stderr)
    print(args.out)
    then(f"open {args.out} in a browser; docs/reading-a-report.md says how to read it")
    return 0


def compare(args: Namespace) -> int:
    """`compare`: printed, unless it goes into a file."""
    from benchmarks.boards.compare import as_json, as_markdown, compare

    rows = compare(args.folders, args.base)
    as_text = as_json if args.format == "json" else as_markdown
    show(as_text(rows), args.out, markdown=args.format == "md")
    return 0


def pareto(args: Namespace) -> int:
    """`pareto`: what the searches of a run found, as tables."""
    from benchmarks.boards.pareto import fronts

    show(fronts(args.folder), None, markdown=True)
    return 0


def new(args: Namespace) -> int:
    """`new-attack`, `new-defense`: writes the package and says what comes next."""
    from benchmarks.commands import new_attack

    make = new_attack.new_defense if args.kind == "defense" else new_attack.new_attack
    written = make(args.name, args.folder)
    for path in written:
        print(path)
    print(f"\nNext: pip install -e {written[0].parent}, then run its test with pytest")
    return 0
