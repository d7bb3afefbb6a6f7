"""The page itself: what is read and drawn goes into one template that escapes all text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from benchmarks.boards.leaderboard import MEANING, big
from benchmarks.boards.ranking import BASELINE
from benchmarks.boards.rows import Entry
from benchmarks.common.lines import one_line
from benchmarks.common.versions import versions
from benchmarks.report import plots
from benchmarks.report.commands import commands
from benchmarks.report.data import Board, Results, read_results
from benchmarks.report.figures import Figures

_HERE = Path(__file__).parent
#: Characters of a prompt or an answer that a page with completions shows.
_LONGEST = 2000
#: Failures that are listed.
_MOST = 200

#: Heading, style and meaning of the columns of a board.
_COLUMNS = (
    ("Attack", "", ""),
    ("Model", "", ""),
    ("ASR", "n", "attack success rate: share of harmful requests on which the attack's first "
     "candidate succeeds, according to the judge; errors count as failures."),
    ("95 % interval", "n", "of ASR: Wilson's with one seed, or a bootstrap over requests."),
    ("ASR@k", "n", "the same for any of the candidates that were answered."),
    ("Compliance", "n", "share of harmful requests that were answered, correctly or not."),
    ("Refusal", "n", "share of harmful requests that were refused."),
    ("Garbled", "n", "share whose answer is incoherent, a loop or an echo; never a success."),
    ("Over-refusal", "n", "share of harmless requests that were refused."),
    ("KL, harmless", "n", "mean divergence of the first token of answers to harmless requests "
     "from that of the unchanged model, in nats."),
    ("Seconds", "n", "median wall-clock time for a request: search and answer."),
    ("To success, s", "n", "seconds of search and verification until half of all requests had a "
     "verified success; a dash when fewer than half ever had."),
    ("To success, FLOPs", "n", "the same in floating-point operations of the search."),
    ("n", "n", "harmful requests with a verdict."),
    ("Errors", "n", "cells that failed."),
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A figure of a board."""

    title: str
    caption: str
    svg: Markup


def report(
    folders: Sequence[Path], out: Path, *, completions: bool = False, behaviors: str | None = None
) -> None:
    """Writes the page about the results in `folders` to `out`.

    Args:
        folders: outputs of runs.
        out: the HTML file; it is self-contained.
        completions: whether to include prompts and answers.
        behaviors: a behaviour set or file that says which category a behaviour is of; none: the
            shipped sets.

    Raises:
        BadInput: see `read_results`.
        OSError: `out` cannot be written.
    """
    results = read_results(folders, behaviors)
    out.write_text(render(results, completions=completions), "utf-8")


def render(results: Results, *, completions: bool) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_visible,
    )  # fmt: skip
    environment.filters |= {"rate": _rate, "number": _number, "clip": _clip}
    style, script = (Markup((_HERE / name).read_text("utf-8")) for name in ("page.css", "page.js"))
    figures = Figures(plots.COLOURS)
    boards = [(board, _pictures(board, figures, results.categories)) for board in results.boards]
    return environment.get_template("page.html.jinja").render(
        results=results,
        boards=boards,
        meaning=MEANING,
        baseline=BASELINE,
        completions=completions,
        versions=versions(),
        commands=commands,
        heads=[(name, kind) for name, kind, _ in _COLUMNS],
        glossary=[(name, text) for name, _, text in _COLUMNS if text],
        most=_MOST,
        style=style + Markup(figures.css),
        script=script,
        # Nothing but this very script runs, whatever a record holds.
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _pictures(board: Board, figures: Figures, known: Mapping[str, str]) -> list[Picture]:
    """Those for which there is something to show; `known` has categories by behaviour."""
    drawn = []
    for title, caption, draw in _PICTURES:
        if svg := draw(board, known):
            label = f"{title}, {one_line(board.title)}. {caption}"
            drawn.append(Picture(title, caption, Markup(figures.inline(svg, label))))
    return drawn


def _seconds(entry: Entry) -> float | None:
    first = entry.record.first_success
    return first.seconds if first else None


def _flops(entry: Entry) -> float | None:
    first = entry.record.first_success
    return first.flops if first else None


_Draw = Callable[[Board, Mapping[str, str]], str]
_PICTURES: tuple[tuple[str, str, _Draw], ...] = (
    (
        "Success by model",
        "Attack success rate of the first candidate with its 95 % interval; where intervals "
        "overlap widely, the ranking is uncertain.",
        lambda board, _: plots.forest(board),
    ),
    (
        "Success over time",
        "Share of requests with a verified success within that many seconds, with 95 % bands; "
        "unsuccessful searches stay in the denominator throughout.",
        lambda board, _: plots.survival(board, _seconds, "Seconds of search and verification"),
    ),
    (
        "Success over compute",
        "The same over the floating-point operations of the search, which do not depend on the "
        "hardware.",
        lambda board, _: plots.survival(board, _flops, "FLOPs of the search"),
    ),
    (
        "Cost against success",
        "Up and to the left is better; the lines are 95 % intervals.",
        lambda board, _: plots.costs(board),
    ),
    (
        "Side effects",
        "Remaining refusals of harmful requests against the change on harmless requests. Down "
        "and to the left is better; the dashed line is the Pareto front.",
        lambda board, _: plots.side_effects(board),
    ),
    (
        "Success by category",
        "Attack success rate by category of the request, over all models of the board.",
        lambda board, known: plots.categories(board, known),
    ),
    (
        "Loss over steps",
        "Median and quartiles over requests of the best loss so far. Losses of different attacks "
        "measure different things and cannot be compared.",
        lambda board, _: plots.losses(board),
    ),
)


def _visible(value: Any) -> Any:
    """Texts with control characters and marks that turn the writing around made visible."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in value)


def _clip(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} [{len(text)} characters]"


def _rate(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.2f}"


def _number(value: float | None) -> str:
    return big(value) or "\u2013"
