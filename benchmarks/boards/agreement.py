"""Where judges disagree, and whether that changes the order of attacks. Imports no torch."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from benchmarks.boards.rows import read_rows_and_entries
from benchmarks.boards.success import BOOTSTRAP_SEED, CONFIDENCE
from benchmarks.boards.tables import attack_labels, table, text

Floats = NDArray[np.float64]

_RESAMPLES = 2000
_SHOWN = 20


@dataclass(frozen=True)
class Pair:
    """Two judges on the answers that both judged."""

    judges: tuple[str, str]
    n: int
    """Answers to harmful requests."""
    same: float
    """Share on which they agree about success."""
    kappa: float | None
    """Cohen's (1960): agreement beyond chance; None where one of them always says the same."""
    kappa_low: float | None
    kappa_high: float | None
    only_first: int
    """Answers that only the first calls a success."""
    only_second: int
    compared: int
    """Pairs of attacks on one model and board that either judge orders."""
    flipped: int
    """Of these, those which the other judge orders the other way."""
    flip_chance: float | None
    """Mean share of flipped ones when behaviours are resampled: what the data leave open."""


@dataclass(frozen=True)
class Ranking:
    """The attacks on one model under each judge."""

    model: str
    threat_model: str
    attack: str
    asr: Mapping[str, float]
    """By judge, over behaviours that all judges judged."""
    rank: Mapping[str, int]
    """By judge; the best is 1, equals share a rank."""


@dataclass(frozen=True)
class Dispute:
    """A behaviour under an attack of which judges say different things."""

    model: str
    attack: str
    behavior_id: str
    success: tuple[str, ...]
    """Judges that call the first answer a success, on most seeds."""
    failure: tuple[str, ...]


@dataclass(frozen=True)
class Agreement:
    """How far the judges of some folders agree."""

    pairs: tuple[Pair, ...]
    rankings: tuple[Ranking, ...]
    disputes: tuple[Dispute, ...]


#: (board, model, attack) -> judge -> record key -> (behaviour, success).
Outcomes = Mapping[tuple[str, ...], Mapping[str, Mapping[str, tuple[str, bool]]]]


def agreement(folders: Sequence[Path]) -> Agreement:
    """Every pair of judges in the folders, on what both of them judged.

    Raises:
        BadInput: a folder without records, or fewer than two judges.
    """
    outcomes = first_outcomes(folders)
    judges = sorted({judge for by_judge in outcomes.values() for judge in by_judge})
    if len(judges) < 2:
        from attacks.core.errors import BadInput  # Here, for its package brings torch along.

        known = ", ".join(judges) or "none"
        raise BadInput(f"judges in these folders: {known}; two are needed (see 'reroute judge')")
    pairs = tuple(compared(outcomes, one, other) for one, other in combinations(judges, 2))
    return Agreement(pairs, tuple(_rankings(outcomes)), tuple(_disputes(outcomes)))


def first_outcomes(folders: Sequence[Path]) -> Outcomes:
    """What each judge says of the first answer to each harmful request.

    Raises:
        BadInput: a folder without records.
    """
    found = read_rows_and_entries(folders)
    names = attack_labels([row for row, _ in found])
    read: dict[tuple[str, ...], dict[str, dict[str, tuple[str, bool]]]] = defaultdict(dict)
    for row, entries in found:
        own = {
            entry.record.key: (entry.record.behavior_id, entry.success)
            for entry in entries
            if entry.record.harmful and entry.record.completions and entry.success is not None
        }
        if row.judge and own:
            board = f"{row.threat_model}, {row.stop}, {row.concurrency}"
            if row.defense:
                board += f", {row.defense} {row.defense_hash}, {row.adaptivity}"
            read[board, f"{row.model}@{row.revision}", row.model, names[row.attack_hash]][
                row.judge
            ] = own
    return read


def compared(outcomes: Outcomes, one: str, other: str) -> Pair:
    """Two judges on what both judged."""
    said: list[tuple[str, bool, bool]] = []
    shared: dict[tuple[str, ...], dict[str, list[tuple[bool, bool]]]] = {}
    for attack, by_judge in outcomes.items():
        first, second = by_judge.get(one, {}), by_judge.get(other, {})
        by_behavior: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
        for key in sorted(first.keys() & second.keys()):
            behavior, success = first[key]
            by_behavior[behavior].append((success, second[key][1]))
            said.append((behavior, success, second[key][1]))
        if by_behavior:
            shared[attack] = by_behavior
    ordered, flipped, chance = _flips(shared)
    found = kappa(said)
    return Pair(
        judges=(one, other),
        n=len(said),
        same=fmean(a == b for _, a, b in said) if said else 0.0,
        kappa=found[0] if found else None,
        kappa_low=found[1] if found else None,
        kappa_high=found[2] if found else None,
        only_first=sum(a and not b for _, a, b in said),
        only_second=sum(b and not a for _, a, b in said),
        compared=ordered,
        flipped=flipped,
        flip_chance=chance,
    )


def kappa(said: Sequence[tuple[str, bool, bool]]) -> tuple[float, float, float] | None:
    """Cohen's kappa of two raters, and its 95 % percentile bootstrap over behaviours.

    None where it is not defined: nothing rated, or both always say one and the same thing.

    Args:
        said: of each answer its behaviour, and what either rater says.
    """
    names = sorted({behavior for behavior, *_ in said})
    at = {name: index for index, name in enumerate(names)}
    cells = np.zeros((len(names), 4))
    for behavior, one, other in said:
        cells[at[behavior], 2 * one + other] += 1
    total = _kappas(cells.sum(0, keepdims=True))[0] if said else np.nan
    if np.isnan(total):
        return None
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=_RESAMPLES)
    values = _kappas(drawn @ cells)
    ends = np.nanquantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(total), float(ends[0]), float(ends[1])


def _kappas(counts: Floats) -> Floats:
    """(R,) of (R, 4) counts of no-no, no-yes, yes-no and yes-yes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        neither, second, first, both = (counts / counts.sum(1, keepdims=True)).T
        chance = (both + first) * (both + second) + (neither + first) * (neither + second)
        found: Floats = (both + neither - chance) / (1 - chance)
    return np.where(chance < 1, found, np.nan)


def _flips(
    shared: Mapping[tuple[str, ...], Mapping[str, Sequence[tuple[bool, bool]]]],
) -> tuple[int, int, float | None]:
    """Ordered pairs of attacks, flipped ones, and the mean share of flips under the bootstrap."""
    compared = flipped = 0
    drawn_shares = []
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    for one, other in combinations(sorted(shared), 2):
        behaviors = sorted(shared[one].keys() & shared[other].keys())
        if one[:2] != other[:2] or not behaviors:
            continue
        rates = [
            np.array([np.mean(shared[attack][name], axis=0) for name in behaviors])
            for attack in (one, other)
        ]
        gap = rates[0] - rates[1]  # (behaviours, judges)
        compared += bool(gap.mean(0).any())
        flipped += bool(np.prod(gap.mean(0)) < 0)
        weights = rng.multinomial(
            len(behaviors), np.full(len(behaviors), 1 / len(behaviors)), size=_RESAMPLES
        )
        drawn_shares.append(float((np.prod(weights @ gap, axis=1) < 0).mean()))
    return compared, flipped, fmean(drawn_shares) if drawn_shares else None


def _rankings(outcomes: Outcomes) -> list[Ranking]:
    boards: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for attack in sorted(outcomes):
        if len(outcomes[attack]) > 1:
            boards[attack[:2]].append(attack)
    rankings = []
    for attacks in boards.values():
        judges = sorted(set.intersection(*(set(outcomes[attack]) for attack in attacks)))
        rates = {attack: _rates(outcomes[attack], judges) for attack in attacks}
        for attack in attacks:
            rank = {
                judge: 1 + sum(rates[o][judge] > rates[attack][judge] for o in attacks)
                for judge in judges
            }
            board, _, model, name = attack
            rankings.append(Ranking(model, board.partition(",")[0], name, rates[attack], rank))
    return rankings


def _rates(
    by_judge: Mapping[str, Mapping[str, tuple[str, bool]]], judges: Sequence[str]
) -> dict[str, float]:
    """Means over behaviours of what all of the judges judged."""
    keys = set.intersection(*(set(by_judge[judge]) for judge in judges)) if judges else set()
    rates = {}
    for judge in judges:
        by_behavior: dict[str, list[bool]] = defaultdict(list)
        for key in keys:
            behavior, success = by_judge[judge][key]
            by_behavior[behavior].append(success)
        rates[judge] = fmean(map(fmean, by_behavior.values())) if by_behavior else 0.0
    return rates


def _disputes(outcomes: Outcomes) -> list[Dispute]:
    found = []
    for (_, _, model, name), by_judge in sorted(outcomes.items()):
        votes: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
        for judge, own in by_judge.items():
            for behavior, success in own.values():
                votes[behavior][judge].append(success)
        for behavior, by in sorted(votes.items()):
            yes = tuple(sorted(judge for judge, own in by.items() if fmean(own) > 0.5))
            no = tuple(sorted(judge for judge in by if judge not in yes))
            if yes and no:
                found.append(Dispute(model, name, behavior, yes, no))
    return found


def as_json(found: Agreement) -> str:
    """One object, with a final newline."""
    return json.dumps(asdict(found), indent=2, allow_nan=False) + "\n"


def as_markdown(found: Agreement) -> str:
    """Tables of pairs of judges, of ranks and of disputed behaviours, with a final newline."""
    pairs = [
        [
            text(pair.judges[0]),
            text(pair.judges[1]),
            str(pair.n),
            f"{pair.same:.2f}",
            kappa_text(pair),
            f"{pair.only_first} : {pair.only_second}",
            f"{pair.flipped} of {pair.compared}",
            "" if pair.flip_chance is None else f"{pair.flip_chance:.2f}",
        ]
        for pair in found.pairs
    ]
    headings = ("Judge", "Other", "Answers", "Same", "Kappa", "Only one : only other")
    parts = [table((*headings, "Flipped", "Flip chance"), pairs, left=2)]
    judges = sorted({judge for ranking in found.rankings for judge in ranking.asr})
    if found.rankings:
        ranks = [
            [
                *map(text, (row.model, row.threat_model, row.attack)),
                *(f"{row.rank[j]} ({row.asr[j]:.2f})" if j in row.rank else "" for j in judges),
            ]
            for row in found.rankings
        ]
        parts.append(table(("Model", "Board", "Attack", *map(text, judges)), ranks, left=3))
    if found.disputes:
        disputes = [
            [
                *map(text, (row.model, row.attack, row.behavior_id)),
                text(", ".join(row.success)),
                text(", ".join(row.failure)),
            ]
            for row in found.disputes[:_SHOWN]
        ]
        shown = table(("Model", "Attack", "Behaviour", "Success", "No success"), disputes, left=5)
        more = len(found.disputes) - _SHOWN
        parts.append(shown + (f"\n\n... and {more} more (--format json)" if more > 0 else ""))
    parts.append(
        "Kappa: Cohen's, with a 95 % bootstrap interval over behaviours. Flipped: pairs of "
        "attacks on one model that the two judges rank in opposite order. Flip chance: the "
        "mean share of these when behaviours are resampled. Ranks are by success of the first "
        "answer, given after each rank, over what all judges judged."
    )
    return "\n\n".join(parts) + "\n"


def kappa_text(pair: Pair) -> str:
    """Kappa and its interval; nothing where it is not defined."""
    if pair.kappa is None:
        return ""
    return f"{pair.kappa:.2f} [{pair.kappa_low:.2f}, {pair.kappa_high:.2f}]"
