"""Whether the words of a prompt tell if it is refused: ``python -m benchmarks.studies.predictor``.

Predictors (`benchmarks.judging.prompt_words`, after arXiv 2306.03423) are fitted on each model's
rows of `direct` in results folders. All figures are of prompts that a predictor was not fitted on,
with a behaviour, its twin and its other wordings always on the same side. The baselines are the
length of the prompt, and the label "harmful" as an oracle: a predictor that does no better has
found harm, and nothing about the model.

On rows of prompt attacks the same predictors read the attacked prompts, and answers are graded on
the refusal continuum.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attacks.core.errors import BadInput
from attacks.core.reading.probes import FOLDS
from benchmarks.boards.tables import table, text
from benchmarks.common.groups import groups_of
from benchmarks.common.progress import say
from benchmarks.common.roc import area_under_curve
from benchmarks.judges.context import Context
from benchmarks.judging.continuum import GRADES, Grade, grade
from benchmarks.judging.prompt_words import Array, Features, NGrams, Predictor, length
from benchmarks.storage.records import DECLINED
from benchmarks.storage.store import read_judgements, read_records

BASELINE = "direct"
#: Behaviours of either outcome that a model must have, so that each fold has some to learn from.
LEAST = 2 * FOLDS
BINS = 10
DRAWS = 500
#: Share of the answered harmless prompts that a filter may stop.
ALARMS = 0.05


@dataclass(frozen=True)
class Asked:
    """A prompt that was sent, and what came back."""

    model: str
    attack: str
    prompt: str
    request: str
    """What was asked for, without what an attack did to it."""
    kin: tuple[str, ...]
    """Ids of the behaviour and its twin, and its target: who shares one belongs together."""
    harmful: bool
    refused: bool
    grade: Grade | None


def read_asked(folders: Sequence[Path], judge: str) -> list[Asked]:
    """The first candidates of undefended prompt attacks that `judge` labelled, each once.

    Raises:
        BadInput: a folder without records, or behaviours that are not to be found.
    """
    found: dict[str, Asked] = {}
    for folder in folders:
        context = Context(folder)
        labels = {
            row.key: row.label
            for row in read_judgements(folder)
            if row.judge == judge and row.completion_index == 0
        }
        for record in read_records(folder):
            if record.threat_model != "prompt" or record.defense or record.origin:
                continue
            if record.key in labels and record.completions:
                behavior, case = context.behavior(record), context.case(record, 0)
                found[record.key] = Asked(
                    model=record.model,
                    attack=record.attack,
                    prompt=record.prompts[0],
                    request=behavior.text,
                    kin=tuple(filter(None, (behavior.id, behavior.twin, behavior.target))),
                    harmful=record.harmful,
                    refused=labels[record.key] in DECLINED,
                    grade=grade(labels[record.key], case.answer),
                )
    if not found:
        raise BadInput(f"no answers to prompt attacks that '{judge}' judged in these folders")
    return list(found.values())


def folds_of(rows: Sequence[Asked]) -> dict[str, int]:
    """The fold of each of their `kin`, by group, groups in an order drawn from a fixed seed."""
    found = groups_of(row.kin for row in rows)
    groups = sorted(set(found.values()))
    order = np.random.default_rng(0).permutation(len(groups))
    places = {groups[at]: place % FOLDS for place, at in enumerate(order)}
    return {name: places[group] for name, group in found.items()}


def fit_folds(
    rows: Sequence[Asked], folds: Mapping[str, int], words: bool = True
) -> dict[int, Predictor]:
    """For each fold a predictor fitted on the rows of the others."""
    found = {}
    for fold in range(FOLDS):
        kept = [row for row in rows if folds[row.kin[0]] != fold]
        texts = [row.prompt for row in kept]
        features: Features = NGrams.fit(texts) if words else length
        found[fold] = Predictor.fit(texts, [row.refused for row in kept], features)
    return found


def quality(probabilities: Array, refused: Array, groups: Sequence[str]) -> dict[str, Any]:
    """How good predictions are.

    Args:
        probabilities: (N,) of refusal.
        refused: (N,) booleans.
        groups: (N,) of prompts that belong together, which the interval draws together.

    Returns:
        n, refused (share); auc with its 95 % bootstrap interval; accuracy; balanced (the mean of
        both outcomes' accuracies); log_loss and that of the base rate, nats; brier; ece, the
        expected calibration error over ten bins of equal width; bins, rows of (mean prediction,
        share refused, n).
    """
    marks = refused.astype(bool)
    said = probabilities > 0.5
    sides = [float((said == marks)[marks == side].mean()) for side in (True, False)]
    rate = float(marks.mean())
    safe = np.clip(probabilities, 1e-9, 1 - 1e-9)
    places = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    bins = [
        (float(probabilities[own].mean()), float(marks[own].mean()), int(own.sum()))
        for at in range(BINS)
        if (own := places == at).any()
    ]
    return {
        "n": len(marks),
        "refused": rate,
        "auc": _area(probabilities, marks),
        "auc_interval": _interval(probabilities, marks, groups),
        "accuracy": float((said == marks).mean()),
        "balanced": float(np.mean(sides)),
        "log_loss": float(-np.where(marks, np.log(safe), np.log(1 - safe)).mean()),
        "log_loss_base": float(-(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))),
        "brier": float(np.square(probabilities - marks).mean()),
        "ece": sum(n * abs(mean - share) for mean, share, n in bins) / len(marks),
        "bins": bins,
    }


def _area(scores: Array, marks: Array) -> float | None:
    return area_under_curve(scores[~marks].tolist(), scores[marks].tolist())


def _interval(scores: Array, marks: Array, groups: Sequence[str]) -> list[float]:
    rng, members = np.random.default_rng(0), defaultdict(list)
    for at, group in enumerate(groups):
        members[group].append(at)
    places = [np.array(own) for own in members.values()]
    areas = []
    for _ in range(DRAWS):
        drawn = np.concatenate([places[at] for at in rng.integers(len(places), size=len(places))])
        if (area := _area(scores[drawn], marks[drawn])) is not None:
            areas.append(area)
    return [float(value) for value in np.quantile(areas, [0.025, 0.975])]


def study(rows: Sequence[Asked]) -> list[dict[str, Any]]:
    """What can be predicted of each model, and what its predictors say of attacks, as JSON values.

    A model with fewer than `LEAST` behaviours of either outcome has a row with a reason instead.
    """
    by_model: dict[str, list[Asked]] = defaultdict(list)
    for row in rows:
        by_model[row.model].append(row)
    found: list[dict[str, Any]] = []
    for model, own in by_model.items():
        # In an order of their own: workers write records as they come.
        plain = sorted((r for r in own if r.attack == BASELINE), key=lambda r: (r.kin, r.prompt))
        counts = Counter(row.refused for row in plain)
        grades = _grades(own)
        if min(counts[True], counts[False]) < LEAST:
            why = f"{counts[True]} of {len(plain)} plain prompts refused"
            say(f"{model}: {why}; {LEAST} of either outcome are needed")
            found.append({"model": model, "unpredicted": why, "grades": grades})
            continue
        found.append({"model": model, **_predict(plain, own), "grades": grades})
        say(f"{model}: AUC {found[-1]['words']['auc']:.3f} on {len(plain)} plain prompts")
    return found


def _predict(plain: Sequence[Asked], own: Sequence[Asked]) -> dict[str, Any]:
    folds = folds_of(plain)
    marks = np.array([row.refused for row in plain])
    known = groups_of(row.kin for row in plain)
    groups = [known[row.kin[0]] for row in plain]
    read = {words: fit_folds(plain, folds, words) for words in (True, False)}
    scores = {words: _out_of_fold(plain, folds, read[words]) for words in read}
    harm = np.array([float(row.harmful) for row in plain])
    kinds = {}
    for name, side in (("harmful", 1.0), ("harmless", 0.0)):
        kinds[name] = _area(scores[True][harm == side], marks[harm == side])
    # What a filter may stop is set by what harmless users send.
    calm = scores[True][(harm == 0) & ~marks]
    threshold = float(np.quantile(calm, 1 - ALARMS)) if len(calm) else 0.5
    attacked: dict[str, list[Asked]] = defaultdict(list)
    for row in own:
        if row.attack != BASELINE and row.harmful and row.kin[0] in folds:
            attacked[row.attack].append(row)
    return {
        "words": quality(scores[True], marks, groups),
        "length": quality(scores[False], marks, groups),
        "harm_auc": _area(harm, marks),
        "within": kinds,
        "threshold": threshold,
        "attacks": {
            name: _attack(kept, folds, read[True], threshold) for name, kept in attacked.items()
        },
    }


def _out_of_fold(
    rows: Sequence[Asked], folds: Mapping[str, int], read: Mapping[int, Predictor]
) -> Array:
    return np.array([float(read[folds[row.kin[0]]]([row.prompt])[0]) for row in rows])


def _attack(
    rows: Sequence[Asked],
    folds: Mapping[str, int],
    read: Mapping[int, Predictor],
    threshold: float,
) -> dict[str, Any]:
    """Of an attack on harmful requests: what was refused, and what the words say of it."""
    marks = np.array([row.refused for row in rows])
    scores = _out_of_fold(rows, folds, read)
    before = np.array([float(read[folds[row.kin[0]]]([row.request])[0]) for row in rows])
    return {
        "n": len(rows),
        "refused": float(marks.mean()),
        "predicted": float(scores.mean()),
        "predicted_plain": float(before.mean()),
        "auc": _area(scores, marks),
        "auc_plain": _area(before, marks),
        "stopped": float((scores[~marks] > threshold).mean()) if not marks.all() else None,
    }


def _grades(rows: Sequence[Asked]) -> dict[str, dict[str, float]]:
    """By attack on harmful requests, and of plain harmless ones, the share of each grade."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.harmful or row.attack == BASELINE:
            found[row.attack if row.harmful else "harmless requests"].append(row.grade or "garbled")
    return {
        name: {kind: own.count(kind) / len(own) for kind in (*GRADES, "garbled")}
        for name, own in found.items()
    }


def as_markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """Predictors, attacks under their eyes, and grades."""
    told = [row for row in found if "words" in row]
    lines = []
    for row in told:
        own = row["words"]
        low, high = own["auc_interval"]
        lines.append(
            [
                text(row["model"]),
                str(own["n"]),
                f"{own['refused']:.2f}",
                f"{own['auc']:.3f} [{low:.3f}, {high:.3f}]",
                f"{row['length']['auc']:.3f}",
                _figure(row["harm_auc"]),
                f"{_figure(row['within']['harmful'])}, {_figure(row['within']['harmless'])}",
                f"{own['balanced']:.2f}",
                f"{own['log_loss']:.3f} ({own['log_loss_base']:.3f})",
                f"{own['ece']:.3f}",
            ]
        )
    parts = []
    if lines:
        heads = ["Model", "Prompts", "Refused", "AUC", "By length", "By harm"]
        heads += ["Within harmful, harmless", "Balanced accuracy", "Log-loss (base rate)", "ECE"]
        parts.append(table(heads, lines, left=1))
    lines = [
        [
            text(row["model"]),
            text(name),
            str(own["n"]),
            f"{own['refused']:.2f}",
            f"{own['predicted_plain']:.2f}",
            f"{own['predicted']:.2f}",
            f"{_figure(own['auc'])}, {_figure(own['auc_plain'])}",
            "" if own["stopped"] is None else f"{own['stopped']:.2f}",
        ]
        for row in told
        for name, own in row["attacks"].items()
    ]
    if lines:
        heads = ["Model", "Attack", "Requests", "Refused", "Predicted, request", "With the attack"]
        heads += ["AUC by prompt, by request", "Successes stopped"]
        parts.append(table(heads, lines, left=2))
    lines = [
        [text(row["model"]), text(name), *(f"{value:.2f}" for value in own.values())]
        for row in found
        for name, own in row["grades"].items()
    ]
    heads = ["Model", "Attack", *(kind.capitalize() for kind in (*GRADES, "garbled"))]
    parts.append(table(heads, lines, left=2))
    return "\n\n".join(parts) + "\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on what is wrong."""
    parser = argparse.ArgumentParser(description="Refusal predicted from the words of a prompt.")
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("results/pocket-board")],
                        metavar="DIR", help="results folders with rows of `direct`")  # fmt: skip
    parser.add_argument("--judge", default="reference", metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("results/predictor"), metavar="DIR")
    args = parser.parse_args(argv)
    try:
        found = study(read_asked(args.folders, args.judge))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "predictor.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (args.out / "README.md").write_text(as_markdown(found), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
