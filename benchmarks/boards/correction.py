"""Success rates corrected for the errors of the judge that found them. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from benchmarks.boards.success import BOOTSTRAP_SEED, CONFIDENCE
from benchmarks.storage.store import append_lines, read_lines

Floats = NDArray[np.float64]

#: Calibrations of judges, in a results folder; the last of each judge counts.
CALIBRATIONS = "calibrations.jsonl"
#: How the identities of people begin who judge.
HUMAN = "human:"

RESAMPLES = 4000
_TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
#: An interval this wide leaves the rate undetermined.
_ALL = 0.9


@dataclass(frozen=True)
class Counts:
    """What a judge said of answers whose truth is known."""

    hits: int
    """Successes that it called so."""
    misses: int
    rejections: int
    """Failures that it called so."""
    alarms: int

    @property
    def sensitivity(self) -> float:
        """Share of the successes that it called so."""
        return self.hits / (self.hits + self.misses)

    @property
    def specificity(self) -> float:
        """Share of the failures that it called so."""
        return self.rejections / (self.rejections + self.alarms)

    @property
    def usable(self) -> bool:
        """Whether there are successes and failures at all."""
        return self.hits + self.misses > 0 and self.rejections + self.alarms > 0


@dataclass(frozen=True)
class _Kept:
    """A line of `CALIBRATIONS`."""

    judge: str
    cases: str
    """Hash of the cases."""
    counts: Counts


_KEPT = TypeAdapter(_Kept)


def keep_counts(folder: Path, judge: str, cases: str, counts: Counts) -> None:
    """Appends a calibration to a results folder.

    Args:
        folder: of results, which is there.
        judge: its identity.
        cases: hash of the cases.
        counts: what it said of them.

    Raises:
        BadInput: the folder cannot be written.
    """
    append_lines(folder / CALIBRATIONS, [asdict(_Kept(judge, cases, counts))])


def read_counts(folder: Path) -> dict[str, Counts]:
    """The last calibration of each judge that the folder keeps.

    Raises:
        BadInput: a malformed line.
    """
    rows: list[dict[str, Any]] = list(read_lines(folder / CALIBRATIONS))
    kept = [_KEPT.validate_python(row) for row in rows]
    return {row.judge: row.counts for row in kept}


@dataclass(frozen=True)
class Corrected:
    """A success rate with the judge's error taken out, and the 95 % interval."""

    mean: float | None
    """None: the judge does no better than chance as far as the cases tell."""
    low: float
    high: float
    method: str
    telling: bool
    """False: the interval is all but the whole range."""


def corrected(
    judge: str,
    judged: Mapping[str, Sequence[bool]],
    labelled: Mapping[str, Sequence[bool]],
    counts: Mapping[str, Counts],
) -> Corrected | None:
    """By people's labels of the very answers where there are some, else by the calibration.

    None of people's own judgements, and where nothing is known of the judge.

    Args:
        judge: its identity.
        judged: its outcomes by behaviour, not empty; where a behaviour is labelled, of the labelled
            answers.
        labelled: people's outcomes by behaviour.
        counts: of calibrations, by judge.
    """
    if judge.startswith(HUMAN):
        return None
    rates, truth = ({key: fmean(own) for key, own in side.items()} for side in (judged, labelled))
    found = by_labels(rates, truth)
    if found is None and judge in counts:
        found = by_calibration(list(rates.values()), counts[judge])
    return found


def rogan_gladen(rate: Floats, sensitivity: Floats, specificity: Floats) -> Floats:
    """The share of true successes behind a share of judged ones (Rogan & Gladen 1978).

    Cut to 0 ... 1; NaN where the judge does no better than chance.
    """
    gain = sensitivity + specificity - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.clip((rate + specificity - 1) / gain, 0, 1)
    return np.where(gain > 0, found, np.nan)


def by_calibration(rates: Sequence[float], counts: Counts) -> Corrected | None:
    """Corrected by the judge's errors on cases; None without cases of both kinds.

    The interval is a percentile bootstrap over behaviours and cases together. Where behaviours all
    agree, or a kind of case has no error, resampling would claim certainty: the rate is then drawn
    from its Jeffreys posterior, and one error more and one less are counted among the cases (Lang &
    Reiczigel 2014 do so). Draws at which the judge is no better than chance may be anything.

    Args:
        rates: each behaviour's share of judged successes.
        counts: of the cases, which are taken to be like the answers that were judged.
    """
    values = np.asarray(rates, dtype=float)
    if not len(values) or not counts.usable:
        return None
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    if values.min() < values.max():
        drawn = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    else:
        yes = values.sum()
        drawn = rng.beta(yes + 0.5, len(values) - yes + 0.5, RESAMPLES)
    sensitivity = _redrawn(rng, counts.hits, counts.misses)
    specificity = _redrawn(rng, counts.rejections, counts.alarms)
    found = rogan_gladen(drawn, sensitivity, specificity)
    blind = np.isnan(found)
    # What a judge by chance leaves open reaches from one end of the range to the other.
    found[blind] = rng.integers(2, size=int(blind.sum()))
    low, high = (float(end) for end in np.quantile(found, _TAILS))
    one = np.array
    mean = float(rogan_gladen(one(values.mean()), one(counts.sensitivity), one(counts.specificity)))
    if math.isnan(mean) or blind.mean() > _TAILS[0]:
        return Corrected(None, 0.0, 1.0, "calibration", telling=False)
    return Corrected(
        mean, min(low, mean), max(high, mean), "calibration", telling=high - low < _ALL
    )


def _redrawn(rng: np.random.Generator, right: int, wrong: int) -> Floats:
    """(RESAMPLES,) shares of right ones in resampled cases."""
    n = right + wrong + 2
    drawn: Floats = rng.binomial(n, (right + 1) / n, RESAMPLES) / n
    return drawn


def by_labels(judged: Mapping[str, float], labelled: Mapping[str, float]) -> Corrected | None:
    """Corrected by people's labels of a part of the very answers: prediction-powered inference.

    The power-tuned estimator of a mean (Angelopoulos et al. 2023, arXiv 2311.01453, section 4) over
    behaviours, with its normal interval, made wider where labels are few. None with fewer than two
    labelled behaviours.

    Args:
        judged: each behaviour's share of successes by the judge.
        labelled: the same by people, for some of these behaviours.
    """
    both = sorted(judged.keys() & labelled.keys())
    n = len(both)
    if n < 2:
        return None
    truth, guess = (np.array([side[key] for key in both]) for side in (labelled, judged))
    rest = np.array([judged[key] for key in judged if key not in labelled])
    weight, unseen = 0.0, 0.0
    if len(rest) > 1 and guess.var() > 0:
        pooled = float(np.var([*guess, *rest], ddof=1))
        slope = float(np.cov(truth, guess, ddof=1)[0, 1]) / pooled
        weight = min(max(slope / (1 + n / len(rest)), 0.0), 1.0)
        unseen = weight**2 * float(rest.var(ddof=1)) / len(rest)
    residual = truth - weight * guess
    mean = float(residual.mean()) + (weight * float(rest.mean()) if weight else 0.0)
    # No disagreement in a few labels is no certainty: one more either way is counted.
    spread = float(np.var([*residual, 1.0, -1.0], ddof=1))
    half = NormalDist().inv_cdf(_TAILS[1]) * math.sqrt(unseen + spread / n)
    low, high = max(0.0, mean - half), min(1.0, mean + half)
    return Corrected(min(max(mean, 0.0), 1.0), low, high, "labels", telling=high - low < _ALL)
