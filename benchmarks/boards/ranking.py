"""The order of boards, and how firm it is: ranks of attacks and their spread over resamples."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from benchmarks.boards.stats import ranks
from benchmarks.storage.entries import Entry

if TYPE_CHECKING:
    from benchmarks.boards.row import Row

#: The attack that changes nothing: shown on every board, for comparison.
BASELINE = "direct"
#: Weakest first, the order of the boards.
THREAT_MODELS = ("prompt", "prefill", "embedding", "intervention", "weights")


def by_success(row: Row) -> tuple[Any, ...]:
    """Sort key on one board: by model and defence, then the most successful attack first."""
    asr = math.inf if row.asr is None else -row.asr
    guard = (row.defense, row.defense_hash)
    last = (row.judge, row.adaptivity, row.origin_model)
    return (row.model, *guard, asr, row.attack, row.attack_hash, *last)


def in_order(row: Row) -> tuple[Any, ...]:
    """Sort key of rows of several boards."""
    known = row.threat_model in THREAT_MODELS
    board = THREAT_MODELS.index(row.threat_model) if known else len(THREAT_MODELS)
    apart = (row.stop != "never", row.concurrency, row.origin_model != "", bool(row.defense))
    return (board, row.threat_model, *apart, by_success(row))


def ranked(pairs: Sequence[tuple[Row, list[Entry]]]) -> list[tuple[Row, list[Entry]]]:
    """The rows with their ranks among the attacks on one model, of one board and judge.

    The baseline is not ranked, nor are searches that end at their first success, whose costs are
    compared instead.
    """
    fields: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for at, (row, _) in enumerate(pairs):
        if row.attack != BASELINE and row.stop != "first-success":
            subject = (row.model, row.revision, row.dtype, row.defense_hash, row.origin_model)
            fields[(*subject, row.threat_model, row.stop, row.concurrency, row.judge)].append(at)
    found = list(pairs)
    for field in fields.values():
        places = ranks([_success(pairs[at][1]) for at in field])
        for at, place in zip(field, places or (), strict=bool(places)):
            row, entries = pairs[at]
            row = replace(row, rank=place.rank, rank_low=place.low, rank_high=place.high)
            found[at] = (row, entries)
    return found


def _success(entries: Sequence[Entry]) -> dict[str, float]:
    """Success of the first candidate by harmful behaviour, the mean over its seeds."""
    said: dict[str, list[bool]] = defaultdict(list)
    for entry in entries:
        if entry.record.harmful and entry.success is not None:
            said[entry.record.behavior_id].append(entry.success)
    return {behavior: fmean(each) for behavior, each in said.items()}
