"""Leaderboards: the rows of result folders as Markdown, CSV or JSON. Imports no torch."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal, get_args

from attacks.core.errors import BadInput
from benchmarks.boards.columns import (
    Column,
    defense_columns,
    effect_columns,
    ranking,
)
from benchmarks.boards.columns import corrected as _corrected
from benchmarks.boards.columns import interval as _interval
from benchmarks.boards.columns import rate as _rate
from benchmarks.boards.columns import seconds as _seconds
from benchmarks.boards.footnotes import footnotes, marks
from benchmarks.boards.ranking import BASELINE, by_success
from benchmarks.boards.rows import Row, read_rows
from benchmarks.boards.tables import attack_labels, table, text
from benchmarks.common.lines import one_line

__all__ = ["FORMATS", "Format", "Row", "read_rows", "render", "update_block"]

Format = Literal["md", "csv", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)

#: The columns that hold words: they are set to the left.
_WORDS = ("Model", "Defence", "Attacker", "Attack", "Found on", "Judge")

#: Share of answers cut by the limit of new tokens from which a board says so.
_CUT = 0.05

START, END = "<!-- leaderboard:start -->", "<!-- leaderboard:end -->"

#: What the attacker may do, by threat model.
MEANING = {
    "prompt": "The attacker writes the prompt and nothing else.",
    "prefill": "The attacker also writes the first words of the answer.",
    "embedding": "The attacker feeds in vectors that correspond to no text.",
    "intervention": "The attacker changes activations or logits while the model answers.",
    "weights": "The attacker changes the weights.",
}


def render(rows: Sequence[Row], style: Format) -> str:
    """The rows in one of the formats, with a final newline.

    Text from records is escaped: for Markdown and HTML, or against being read as a formula.
    """
    return {"md": _markdown, "csv": _csv, "json": _json}[style](rows)


def update_block(readme: str, table: str) -> str:
    """`readme` with `table` between the two leaderboard markers.

    Raises:
        BadInput: the markers are not there, once each and in order.
    """
    head, start, rest = readme.partition(START)
    _, end, tail = rest.partition(END)
    if not (start and end) or readme.count(START) != 1 or readme.count(END) != 1:
        raise BadInput(f"the file needs one {START} and, after it, one {END}")
    return f"{head}{START}\n{table.strip()}\n{END}{tail}"


def _json(rows: Sequence[Row]) -> str:
    return json.dumps([dataclasses.asdict(row) for row in rows], indent=2, allow_nan=False) + "\n"


def _csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(Row)])
    for row in rows:
        writer.writerow([_csv_cell(value) for value in dataclasses.asdict(row).values()])
    return out.getvalue()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    value = one_line(value) if isinstance(value, str) else value
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") and value:
        return value if _is_number(value) else f"'{value}"
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _markdown(rows: Sequence[Row]) -> str:
    """One table for each threat model, stop rule and concurrency, and a legend."""
    if not rows:
        return "No records.\n"
    blocks, used = [], set[str]()
    columns = columns_of(rows)
    for _, board in groupby(rows, key=board_of):
        own = list(board)
        shown = with_baselines(own, rows)
        filled = [column for column in columns if any(map(column.cell, shown))]
        used |= {column.heading for column in filled}
        blocks.append(f"### {text(title_of(own[0]))}\n\n{_table(filled, shown)}\n\n{note_of(own)}")
    legend = "\n".join(f"- **{c.heading}**: {c.meaning}" for c in columns if c.heading in used)
    return "\n\n".join([*blocks, f"How to read the columns:\n\n{legend}"]) + "\n"


def board_of(row: Row) -> tuple[str, str, int, bool, bool]:
    """What rows must share to be ranked on one board."""
    apart = bool(row.origin_model), bool(row.defense)
    return row.threat_model, row.stop, row.concurrency, *apart


def with_baselines(board: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """A board and the baseline on its models under its judges, which all is to be compared with."""
    keys = {(row.model, row.judge) for row in board}
    added = [
        row
        for row in rows
        if row.attack == BASELINE
        and not row.origin_model
        and board_of(row) != board_of(board[0])
        and board_of(row)[1:3] == board_of(board[0])[1:3]
        and bool(row.defense) == bool(board[0].defense)
        and (row.model, row.judge) in keys
    ]
    return sorted([*added, *board], key=by_success)


def title_of(row: Row) -> str:
    """The title of the board that a row is on, not escaped."""
    title = f"{row.threat_model.capitalize()} attacks"
    if row.defense:
        title += " on defended models"
    if row.stop == "first-success":
        title += ", ended at the first success"
    if row.concurrency != 1:
        title += f", {row.concurrency} cells at a time"
    if row.origin_model:
        title += ", transferred"
    return title


def note_of(board: Sequence[Row]) -> str:
    """The lines under a board."""
    note = MEANING.get(board[0].threat_model, "")
    if board[0].stop == "first-success":
        note += " Each search ended when a candidate was verified: compare costs, not success."
    if board[0].concurrency != 1:
        note += " Cells ran concurrently on one machine: times are not those of a cell run alone."
    if joint := {row.attack: row.together for row in board if row.together > 1}:
        which = ", ".join(f"{name} ({count})" for name, count in sorted(joint.items()))
        note += (
            f" Several searches shared each pass: {text(which)}. Their seconds are shares of joint "
            "passes, not those of a search alone."
        )
    if board[0].origin_model:
        note += " The prompts were found on another model and sent as they are."
    if any(row.mixed for row in board):
        note += (
            " Rows with an asterisk mix runs in different settings (system prompt, answer length, "
            "training prompts)."
        )
    cut = [row for row in board if (row.cut or 0) > _CUT]
    if cut:
        limits = " or ".join(str(limit) for limit in sorted({row.limit for row in cut}))
        note += (
            f" Up to {max(row.cut or 0 for row in cut):.2f} of a row's answers reached the limit "
            f"of {limits} tokens and were cut there: what would have come later was not judged."
        )
    return "\n\n".join([note.strip(), *footnotes(board)])


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    left = sum(column.heading in _WORDS for column in columns)
    cells = [[column.cell(row) for column in columns] for row in rows]
    return table([column.heading for column in columns], cells, left=left)


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """All columns that the boards of these rows may show."""
    names = attack_labels(rows)
    tries = max(row.attempts for row in rows)
    return [
        Column("Model", "the model under attack.", lambda row: text(row.model)),
        *defense_columns(rows),
        Column(
            "Attack",
            f"the technique; `{BASELINE}` sends each request unchanged and is the baseline. "
            "Parameters are given where one technique has several rows.",
            lambda row: text(names[row.attack_hash]) + marks(row),
        ),
        Column(
            "Found on",
            "the model that the prompts were found on.",
            lambda row: text(row.origin_model),
        ),
        Column("Judge", "what decides success.", lambda row: text(row.judge)),
        Column(
            "ASR",
            "attack success rate: share of harmful requests on which the attack's first candidate "
            "succeeds, with the 95 % interval; errors count as failures.",
            lambda row: _interval(row.asr, row.asr_low, row.asr_high),
        ),
        Column(
            "Rank",
            "place by success among the attacks on this model, on the requests that all of them "
            "were run on, with the 95 % interval of a bootstrap over these; attacks that agree on "
            "every request share a place.",
            ranking,
        ),
        Column(
            "Corrected",
            "success corrected for the judge's error, with its 95 % interval: from human "
            "labels of some of these answers (labels), or from the judge's errors on labelled "
            "answers (calibration), valid as far as those resemble these.",
            _corrected,
        ),
        Column(
            "ASR@k",
            f"the same for any of the first k candidates that were answered; k is {tries}.",
            lambda row: _rate(row.success_at_k) if row.attempts > 1 else "",
        ),
        Column(
            "Sampled",
            "probability that a sampled answer to the first candidate is a success, with the "
            "95 % interval of a bootstrap over requests.",
            lambda row: _interval(row.sample_asr, row.sample_asr_low, row.sample_asr_high),
        ),
        Column(
            "Any sampled",
            "share of harmful requests for which any of the sampled answers is a success.",
            lambda row: "" if row.sample_any is None else f"{row.sample_any:.2f} of {row.samples}",
        ),
        Column(
            "Compliance",
            "share of harmful requests that were answered, correctly or not.",
            lambda row: _rate(row.compliance),
        ),
        Column(
            "Refusal",
            "share of harmful requests that were refused.",
            lambda row: _rate(row.refusal_rate),
        ),
        Column(
            "Constructive",
            "share of harmful requests that were refused with an alternative: another way, or whom "
            "to ask.",
            lambda row: _rate(row.constructive or None),
        ),
        Column(
            "Garbled",
            "share of harmful requests whose answer is incoherent, a loop or an echo of the "
            "prompt; never a success.",
            lambda row: _rate(row.garbled),
        ),
        *effect_columns(),
        Column(
            "Over-refusal",
            "share of harmless requests that were refused.",
            lambda row: _rate(row.over_refusal),
        ),
        Column(
            "Harmless kept",
            "share of harmless requests that were still answered with all facts.",
            lambda row: _rate(row.harmless_kept),
        ),
        Column(
            "KL on harmless",
            "mean divergence, in nats, of the changed model's first-token distribution from "
            "that of the unchanged model, on harmless requests.",
            lambda row: "" if row.harmless_kl is None else f"{row.harmless_kl:.2g}",
        ),
        Column(
            "KL per token",
            "the same at every token of the answers that the plain model gives to these requests: "
            "mean divergence in nats a token.",
            lambda row: "" if row.harmless_answer_kl is None else f"{row.harmless_answer_kl:.2g}",
        ),
        Column(
            "Seconds",
            "median wall-clock time for one request: search and answer.",
            lambda row: _seconds(row.seconds_median),
        ),
        Column(
            "Preparation",
            "seconds to fit the attack to the model, once.",
            lambda row: _seconds(row.prepare_seconds or None),
        ),
        Column(
            "To first success, s",
            "seconds of search and verification until half of all requests had their first "
            "verified success; a dash when fewer than half ever had.",
            lambda row: _seconds(row.first_success_seconds_median),
        ),
        Column(
            "To first success, FLOPs",
            "the same in floating-point operations of the search.",
            lambda row: big(row.first_success_flops_median),
        ),
        Column(
            "Steps/s",
            "search steps per second.",
            lambda row: _seconds(row.steps_per_second),
        ),
        Column("Requests", "harmful requests with a verdict.", lambda row: str(row.n)),
        Column(
            "Seeds",
            "repetitions of each request.",
            lambda row: str(row.seeds) if max(r.seeds for r in rows) > 1 else "",
        ),
        Column("Errors", "runs that failed.", lambda row: str(row.errors)),
        Column("Unjudged", "answers without a verdict, left out.", lambda row: str(row.nulls)),
    ]


def big(value: float | None) -> str:
    """A number with three digits, a large one with a prefix: 12.3 G."""
    if value is None:
        return ""
    for prefix in ("", "k", "M", "G", "T", "P"):
        # 999.5 would be written as 1e+03.
        if value < 999.5:
            return f"{value:.3g} {prefix}".strip()
        value /= 1000
    return f"{value:.3g} E"
