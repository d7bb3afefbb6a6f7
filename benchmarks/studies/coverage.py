"""How often intervals of success hold the truth: ``python -m benchmarks.studies.coverage``.

On committed pocket boards the judge `reference` knows the truth. Each row (an attack on a model) is
judged by `phrases` as well, which takes any answer that opens with no refusal for a success. Again
and again half as many behaviours are drawn from the row, with replacement, to stand for a board,
and the interval of its success rate is held against the true rate of the row: as judged; corrected
by the judge's errors on as many other draws (a calibration on answers like these); corrected by its
errors on answers to other attacks; and corrected by the labels of a third of the very answers.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.boards.correction import Corrected, Counts, by_calibration, by_labels
from benchmarks.boards.success import success_rate, wilson
from benchmarks.boards.tables import table
from benchmarks.common.progress import say
from benchmarks.judges import Case, Judge, Verdict, load_judge
from benchmarks.judges.context import Context
from benchmarks.storage.store import read_judgements, read_records

BOARDS = ("pocket-board", "pocket-rerouting", "pocket-interventions")
RESAMPLES = 200
#: Behaviours that a row needs, and how much of its judged rate is to be wrong: where a judge makes
#: no error, there is nothing to correct.
LEAST, WRONG = 40, 0.02
WAYS = ("as judged", "calibrated on the attack", "calibrated on others", "labels of a third")

Row = dict[str, tuple[bool, bool]]
"""By behaviour: what the judge says, and the truth."""


def rows_of(folder: Path, judge: Judge, said: dict[Case, Verdict]) -> dict[tuple[str, str], Row]:
    """By model and attack, of first candidates whose truth is known; one seed of each behaviour.

    `said` keeps verdicts: what the judge sees alike is judged once.
    """
    truth = {
        row.key: row.success
        for row in read_judgements(folder)
        if row.judge == "reference" and row.completion_index == 0 and row.success is not None
    }
    context = Context(folder)
    found: dict[tuple[str, str], Row] = defaultdict(dict)
    for record in read_records(folder):
        if not record.harmful or record.key not in truth or record.origin:
            continue
        own = found[record.model, record.attack_hash]
        if record.behavior_id not in own:
            case, broken = context.case(record, 0), bool(record.garbled and record.garbled[0])
            seen = judge.shown(case)
            if seen not in said:
                said[seen] = judge.judge(case.behavior, case.answer, openers=case.openers)
            settled = judge.settled(said[seen], garbled=broken, answer=case.answer)
            own[record.behavior_id] = (bool(settled.success), truth[record.key])
    return found


def counts_of(cases: Sequence[tuple[bool, bool]]) -> Counts:
    """The judge's errors on cases."""
    found = Counter(cases)
    return Counts(found[True, True], found[False, True], found[False, False], found[True, False])


def covered(
    row: Row, others: Sequence[tuple[bool, bool]], rng: np.random.Generator
) -> dict[str, bool | None]:
    """For one draw, by way: whether the interval holds the truth; None where there is none."""
    pairs = list(row.values())
    half = len(pairs) // 2
    board, cases = ([pairs[at] for at in rng.integers(len(pairs), size=half)] for _ in range(2))
    true = float(np.mean([truth for _, truth in pairs]))
    judged = {str(at): float(pair[0]) for at, pair in enumerate(board)}
    values = list(judged.values())
    elsewhere = [others[at] for at in rng.integers(len(others), size=half)]
    labelled = {str(at): float(pair[1]) for at, pair in enumerate(board[: half // 3])}
    rate = success_rate([[said] for said, _ in board])
    assert rate is not None
    made: Mapping[str, Corrected | None] = {
        "calibrated on the attack": by_calibration(values, counts_of(cases)),
        "calibrated on others": by_calibration(values, counts_of(elsewhere)),
        "labels of a third": by_labels(judged, labelled),
    }
    held: dict[str, bool | None] = {"as judged": rate.low <= true <= rate.high}
    for way, one in made.items():
        held[way] = None if one is None else one.low <= true <= one.high
    return held


def study(results: Path, judge: str, resamples: int) -> list[dict[str, object]]:
    """A line for each row on which the judge errs, with the share of intervals that hold."""
    loaded, said = load_judge(judge), dict[Case, Verdict]()
    rows = {
        (board, *names): row
        for board in BOARDS
        for names, row in rows_of(results / board, loaded, said).items()
    }
    found: list[dict[str, object]] = []
    for at, (names, row) in enumerate(rows.items()):
        judged, true = (float(np.mean([pair[side] for pair in row.values()])) for side in (0, 1))
        if len(row) < LEAST or abs(judged - true) < WRONG:
            continue
        others = [pair for other, own in rows.items() if other != names for pair in own.values()]
        rng = np.random.default_rng(at)
        draws = [covered(row, others, rng) for _ in range(resamples)]
        known = {way: [d[way] for d in draws if d[way] is not None] for way in WAYS}
        found.append(
            {
                "board": names[0],
                "model": names[1],
                "attack_hash": names[2],
                "judged": judged,
                "truth": true,
                "n": len(row),
                **{way: [sum(map(bool, own)), len(own)] for way, own in known.items()},
            }
        )
        say(f"{names[0]} · {names[1]}: {judged:.2f} judged, {true:.2f} true")
    return found


def as_markdown(found: Sequence[Mapping[str, object]]) -> str:
    """Rates over all rows, and the worst row of each way."""
    lines = []
    for way in WAYS:
        pairs = [pair for line in found if isinstance(pair := line[way], list) and pair[1]]
        held, n = (sum(pair[side] for pair in pairs) for side in (0, 1))
        low, high = wilson(held, n)
        worst = min((pair[0] / pair[1] for pair in pairs), default=float("nan"))
        lines.append([way, str(len(pairs)), str(n), f"{held / n:.3f} [{low:.3f}, {high:.3f}]",
                      f"{worst:.3f}"])  # fmt: skip
    heads = ["Interval", "Rows", "Draws", "Hold the truth", "In the worst row"]
    return table(heads, lines, left=1) + "\n"


def main() -> None:
    """Measure, and write the table and its figures."""
    parser = argparse.ArgumentParser(
        description="How often intervals of the success rate cover the truth."
    )
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--judge", default="phrases", metavar="NAME")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, metavar="N")
    parser.add_argument("--out", type=Path, default=Path("results/coverage"), metavar="DIR")
    args = parser.parse_args()
    found = study(args.results, args.judge, args.resamples)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "coverage.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (args.out / "README.md").write_text(as_markdown(found), "utf-8")


if __name__ == "__main__":
    main()
