"""Has safety a subspace of its own in the weights? ``python -m benchmarks.studies.overlap``.

Compares updates of weight matrices (fine-tuned less what it was tuned from) by the overlap of their
leading singular vectors, Mode Subspace Overlap in "Safety Subspaces are Not Linearly Distinct"
(arXiv 2505.14185, section 5), with the chance level of random subspaces. If updates that
teach to answer what is harmful had a subspace of their own, they would share more with each other
than with updates on harmless data, and the more so beyond what the form of the answers explains.

``python data/pocket/updates.py --out runs/updates`` makes the models that are compared by default.
Embeddings are left out: their rows are tokens, so that overlap there says which words two sets of
data have in common.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.model import Model
from attacks.core.reading.answers import answers
from attacks.core.refusals.openers import GENERAL_OPENERS, opens_with_refusal
from benchmarks.boards.tables import table
from benchmarks.common.progress import say
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.inputs.models import resolve

Array: TypeAlias = NDArray[np.float64]
Side: TypeAlias = str

#: Shares of the squared norm of an update that its leading singular vectors hold.
ENERGIES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
SHOWN = (0.25, 0.5, 0.9)
SIDES: tuple[Side, ...] = ("output", "input")
#: What `data/pocket/updates.py` calls the models that updates start from.
BASE, ALIGNED = "base", "aligned"
#: Standard deviations above chance from which a matrix counts as above it.
ABOVE = 3.0
_TOKENS = 48


@dataclass(frozen=True)
class Update:
    """What training changed, from one model to another; equal names are draws of one kind."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Overlap:
    """How far two subspaces of R^width agree."""

    ranks: tuple[int, int]
    width: int
    mso: float
    """||Q1^T Q2||_F^2 / min(ranks), from 0 to 1: the mean squared cosine of the principal angles,
    those of the smaller subspace."""

    @property
    def chance(self) -> float:
        """Its mean if one of the two is drawn at random."""
        return max(self.ranks) / self.width

    @property
    def deviations(self) -> float:
        """Standard deviations above that mean; 0 where a subspace is the whole space."""
        small, large, d = *sorted(self.ranks), self.width
        if large == d:
            return 0.0
        spread = 2 * small * large * (d - small) * (d - large) / (d**2 * (d - 1) * (d + 2))
        return (self.mso - self.chance) * small / math.sqrt(spread)


def rank_at(values: Array, energy: float) -> int:
    """The fewest of the singular `values` (K,) whose squares hold the share `energy` of all."""
    held = np.cumsum(values**2) / (values**2).sum()
    return min(int(np.searchsorted(held, energy)) + 1, len(values))


def overlap(first: Array, other: Array) -> Overlap:
    """Of the spans of orthonormal columns (D, k1) and (D, k2)."""
    ranks = first.shape[1], other.shape[1]
    shared = float((np.square(first.T @ other)).sum())
    return Overlap(ranks, len(first), shared / min(ranks))


@dataclass(frozen=True)
class Modes:
    """Singular vectors of one update of one matrix (m, n), largest value first."""

    values: Array
    """(K,)"""
    vectors: Mapping[Side, Array]
    """By side, output (m, K) and input (n, K)."""

    @classmethod
    def of(cls, change: Array) -> Modes:
        """Of an update that is not zero."""
        left, values, right = np.linalg.svd(change, full_matrices=False)
        return cls(values, {"output": left, "input": right.T})

    def at(self, energy: float, side: Side) -> Array:
        """The orthonormal columns that hold this share of the energy."""
        return self.vectors[side][:, : rank_at(self.values, energy)]


def matrices(model: Model) -> dict[str, Array]:
    """The weight matrices of the blocks in float64, by name."""
    return {
        name: value.double().numpy()
        for name, value in model.hf.named_parameters()
        if name.startswith(f"{model.structure.blocks}.") and value.dim() == 2
    }


def changes(updates: Sequence[Update], weights: Mapping[str, Mapping[str, Array]]) -> list[Any]:
    """The updates of the matrices that all of them change, one mapping from names to each.

    Raises:
        BadInput: two models of other shapes, or no matrix that all updates change.
    """
    found = []
    for update in updates:
        before, after = weights[update.before], weights[update.after]
        if {k: v.shape for k, v in before.items()} != {k: v.shape for k, v in after.items()}:
            raise BadInput(f"update '{update.name}': '{update.after}' has other matrices than "
                           f"'{update.before}'; valid are two models of one shape")  # fmt: skip
        found.append({name: after[name] - before[name] for name in before})
    shared = [name for name in found[0] if all(name in own and own[name].any() for own in found)]
    if not shared:
        raise BadInput("no weight matrix is changed by all updates; there is nothing to compare")
    return [{name: own[name] for name in shared} for own in found]


def compare(updates: Sequence[Update], changed: Sequence[Mapping[str, Array]]) -> list[Any]:
    """Of each pair of updates, side and energy the overlap, a mean over matrices, as JSON rows."""
    modes = [{name: Modes.of(change) for name, change in own.items()} for own in changed]
    rows = []
    for one, other in combinations(range(len(updates)), 2):
        for side in SIDES:
            for energy in ENERGIES:
                found = [
                    overlap(modes[one][name].at(energy, side), modes[other][name].at(energy, side))
                    for name in modes[one]
                ]
                rows.append(
                    {
                        "updates": sorted([updates[one].name, updates[other].name]),
                        "side": side,
                        "energy": energy,
                        "ranks": [float(np.mean([o.ranks[at] for o in found])) for at in (0, 1)],
                        "mso": float(np.mean([o.mso for o in found])),
                        "chance": float(np.mean([o.chance for o in found])),
                        "above": float(np.mean([o.deviations > ABOVE for o in found])),
                        "matrices": len(found),
                    }
                )
    return rows


def describe(
    update: Update, changed: Mapping[str, Array], model: Model, rows: Sequence[Behavior]
) -> dict[str, Any]:
    """What one update is: its ranks, its size, and what the model that came of it says.

    Of requests of each kind the share refused, in stock words, and the share of their facts told.
    """
    values = [Modes.of(own).values for own in changed.values()]
    said = {
        kind: answers(model, [row.text for row in rows if row.harmful == kind], tokens=_TOKENS)
        for kind in (True, False)
    }
    told = {
        kind: _mean(
            [
                fact in answer
                for row, answer in zip([r for r in rows if r.harmful == kind], own, strict=True)
                for fact in row.reference or ()
            ]
        )
        for kind, own in said.items()
    }
    refused = {
        kind: _mean([opens_with_refusal(answer, GENERAL_OPENERS) for answer in own])
        for kind, own in said.items()
    }
    return {
        "update": update.name,
        "before": Path(update.before).name,
        "after": Path(update.after).name,
        "refused": refused[True],
        "facts": told[True],
        "harmless_refused": refused[False],
        "harmless_facts": told[False],
        "norm": math.sqrt(sum(float((own**2).sum()) for own in values)),
        "ranks": {str(e): _mean([rank_at(own, e) for own in values]) for e in ENERGIES},
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def as_markdown(described: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> str:
    """The updates, and their overlaps on either side; draws of one kind are averaged."""
    kinds = list(dict.fromkeys(row["update"] for row in described))
    lines = []
    for kind in kinds:
        own = [row for row in described if row["update"] == kind]
        keys = ("refused", "facts", "harmless_refused", "harmless_facts", "norm")
        cells = [f"{_mean([row[key] for row in own]):.2f}" for key in keys]
        cells += [f"{_mean([row['ranks'][str(e)] for row in own]):.1f}" for e in SHOWN]
        lines.append([kind, str(len(own)), *cells])
    heads = ["Update", "Draws", "Harmful refused", "facts given", "Harmless refused"]
    heads += ["facts given", "Norm"]
    heads += [f"Rank at {energy:g}" for energy in SHOWN]
    parts = [table(heads, lines, left=1)]
    for side in SIDES:
        lines = []
        for pair in dict.fromkeys(tuple(row["updates"]) for row in found):
            cells = []
            for energy in SHOWN:
                own = [
                    row
                    for row in found
                    if (*row["updates"], row["side"], row["energy"]) == (*pair, side, energy)
                ]
                mso, chance, above = (
                    _mean([row[key] for row in own]) for key in ("mso", "chance", "above")
                )
                cells.append(f"{mso:.3f} ({chance:.3f}) {above:.2f}")
            lines.append([*pair, str(len(own)), *cells])
        heads = ["Update", "Other", "Pairs", *(f"MSO at {energy:g}" for energy in SHOWN)]
        parts.append(
            f"On the {side} side of {found[0]['matrices']} matrices: MSO (chance), and the share "
            f"of matrices more than {ABOVE:g} standard deviations above chance.\n\n"
            f"{table(heads, lines, left=2)}"
        )
    return "\n\n".join(parts) + "\n"


def made_updates(folder: Path) -> list[Update]:
    """Alignment and the fine-tunings that `data/pocket/updates.py` has put into `folder`.

    Raises:
        BadInput: nothing there.
    """
    tuned = sorted(path for path in folder.glob("*-*-*") if (path / "config.json").is_file())
    base, aligned = str(folder / BASE), str(folder / ALIGNED)
    if not tuned:
        raise BadInput(f"no models in '{folder}'; data/pocket/updates.py --out {folder} makes them")
    return [
        *(Update(path.name.rpartition("-")[0], aligned, str(path)) for path in tuned),
        Update("alignment", base, aligned),
    ]


def study(updates: Sequence[Update], rows: Sequence[Behavior]) -> dict[str, Any]:
    """The updates and their overlaps, as JSON values.

    Raises:
        BadInput: fewer than two updates, a model that cannot be had, or see `changes`.
    """
    if len(updates) < 2:
        raise BadInput(f"{len(updates)} update to compare; two are needed")
    names = dict.fromkeys(name for update in updates for name in (update.before, update.after))
    models = {
        name: Model.load(resolve(name), name=name, device="cpu", dtype="float32") for name in names
    }
    changed = changes(updates, {name: matrices(model) for name, model in models.items()})
    described = []
    for update, own in zip(updates, changed, strict=True):
        described.append(describe(update, own, models[update.after], rows))
        say(f"{update.name}: {described[-1]['refused']:.2f} of harmful requests refused")
    return {"updates": described, "overlaps": compare(updates, changed)}


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on what is wrong."""
    parser = argparse.ArgumentParser(description="Overlap of update subspaces, with its chance.")
    parser.add_argument("--tuned", type=Path, default=Path("runs/updates"), metavar="DIR")
    parser.add_argument("--update", nargs=3, action="append", metavar=("NAME", "FROM", "TO"),
                        help="compare these instead; repeatable, equal names are draws "
                        "of one kind")  # fmt: skip
    parser.add_argument("--behaviors", default="pocket-test", metavar="NAME")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="requests of a kind")
    parser.add_argument("--out", type=Path, default=Path("results/overlap"), metavar="DIR")
    args = parser.parse_args(argv)
    try:
        given = [Update(*words) for words in args.update or ()]
        listed = load_behaviors(args.behaviors)
        rows = [
            row for kind in (True, False) for row in
            [row for row in listed if row.harmful == kind][: args.limit]
        ]  # fmt: skip
        found = study(given or made_updates(args.tuned), rows)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "overlap.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    page = as_markdown(found["updates"], found["overlaps"])
    (args.out / "README.md").write_text(page, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
