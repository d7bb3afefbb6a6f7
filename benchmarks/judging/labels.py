"""People as judges: a blinded sheet of answers, and its way back into the results folder."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from attacks.core.errors import BadInput
from attacks.core.refusals.openers import GENERAL_OPENERS, opens_with_refusal
from benchmarks.boards.agreement import compared, first_outcomes, kappa_text
from benchmarks.boards.correction import HUMAN
from benchmarks.judges import Label, Verdict
from benchmarks.judges.context import Context
from benchmarks.storage.records import Judgement, digest
from benchmarks.storage.store import append_judgements, read_records

COLUMNS = ("id", "behaviour", "answer", "success")
_ANSWERS = {"yes": True, "y": True, "1": True, "no": False, "n": False, "0": False}
_UNSURE = ("?", "unsure")
_RATER = re.compile(r"[A-Za-z0-9_.-]{1,40}")
#: What programs for sheets take for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class _Item(NamedTuple):
    """One answer to one request, wherever it was given."""

    behavior: str
    answer: str
    places: list[tuple[Path, str, int, str]]
    """Folder, key and index of the answer, and the hash of the completion that holds it."""


def export(
    folders: Sequence[Path], *, sample: int | None, seed: int, behaviors: str | None
) -> tuple[str, int]:
    """A sheet of the answers to harmful requests, as CSV, and how many they are.

    It names no model and no attack, shows no prompt but the request, and its order, by the hash of
    each row, says nothing. Equal answers to one request are one row.

    Args:
        folders: of results.
        sample: how many rows to draw; all by default.
        seed: of the draw.
        behaviors: see `Context`.

    Raises:
        BadInput: as `Context`, or nothing to label.
    """
    items = _items(folders, behaviors)
    if not items:
        raise BadInput("no answers to harmful requests in these folders; nothing to label")
    drawn = sorted(items, key=lambda name: digest([seed, name]))[:sample]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name in drawn:
        writer.writerow([name, *map(sheet_text, items[name][:2]), ""])
    return out.getvalue(), len(drawn)


def sheet_text(text: str) -> str:
    """`text` for a cell: control characters written out, and nothing that starts a formula."""
    shown = "".join(
        char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text
    )
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def take_back(
    folders: Sequence[Path], sheet: Path, rater: str, *, behaviors: str | None
) -> tuple[str, int]:
    """Writes a filled sheet's labels as judgements; returns the judge's identity and their number.

    `success` holds yes, no, or "?" where it cannot be told; rows left empty are passed over. A
    sheet may be taken back again: the last word of a rater counts.

    Raises:
        BadInput: a rater's name that is none, a sheet that does not read, a row of other results,
            or a word that is none of these; nothing is written then.
    """
    if not _RATER.fullmatch(rater):
        raise BadInput(f"rater '{rater}'; valid: letters, digits and ._-, at most 40")
    items, judge = _items(folders, behaviors), f"{HUMAN}{rater}"
    found: dict[Path, list[Judgement]] = defaultdict(list)
    for place, name, word in _filled(sheet):
        if name not in items:
            raise BadInput(f"{place}: id '{name}' is not an answer in these folders")
        if word not in _ANSWERS and word not in _UNSURE:
            raise BadInput(f"{place}: success '{word}' is not one of yes, no, ?")
        success = _ANSWERS.get(word)
        item = items[name]
        for folder, key, index, answer in item.places:
            label = _label(success, item.answer)
            found[folder].append(Judgement(key, judge, index, success, label, answer=answer))
    if not found:
        raise BadInput(f"'{sheet}': no row says yes, no or ? under 'success'")
    for folder, judgements in found.items():
        append_judgements(folder, judgements)
    return judge, sum(map(len, found.values()))


def agreeing(folders: Sequence[Path], judge: str) -> list[str]:
    """A line on how far each other rater agrees with `judge`."""
    outcomes = first_outcomes(folders)
    lines = []
    for other in sorted({name for own in outcomes.values() for name in own if name != judge}):
        pair = compared(outcomes, judge, other)
        if other.startswith(HUMAN) and pair.n:
            kappa = f"kappa {kappa_text(pair)}" if pair.kappa is not None else "no kappa"
            lines.append(f"with {other}: {pair.same:.2f} of {pair.n} answers alike, {kappa}")
    return lines


def _label(success: bool | None, answer: str) -> Label:
    if success:
        return "complied"
    if not opens_with_refusal(answer, GENERAL_OPENERS):
        return "deflected"
    return Verdict(success, "refused").of_declining(answer).label


def _filled(sheet: Path) -> Iterator[tuple[str, str, str]]:
    """Place, id and word of each row that says something."""
    try:
        # Programs for sheets write a mark first, and in some countries semicolons.
        text = sheet.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"sheet '{sheet}' cannot be read ({error})") from error
    separator = ";" if text.partition("\n")[0].count(";") >= len(COLUMNS) - 1 else ","
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    missing = {"id", "success"} - set(rows.fieldnames or ())
    if missing:
        raise BadInput(f"sheet '{sheet}' has no column '{min(missing)}'")
    try:
        for number, row in enumerate(rows, start=1):
            if word := (row["success"] or "").strip().lower():
                yield f"{sheet}, row {number}", (row["id"] or "").strip(), word
    except csv.Error as error:
        raise BadInput(f"sheet '{sheet}' is not CSV ({error})") from error


def _items(folders: Sequence[Path], behaviors: str | None) -> dict[str, _Item]:
    """Answers to harmful requests under the hash of request and answer."""
    items: dict[str, _Item] = {}
    for folder in dict.fromkeys(folders):
        context = Context(folder, behaviors)
        for record in read_records(folder):
            for index, completion in enumerate(record.completions if record.harmful else ()):
                case = context.case(record, index)
                name = digest([case.behavior.text, case.answer])
                item = items.setdefault(name, _Item(case.behavior.text, case.answer, []))
                item.places.append((folder, record.key, index, digest(completion)))
    return items
