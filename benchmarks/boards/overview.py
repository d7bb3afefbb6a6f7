"""README's picture: attack success by hardening level (`python -m benchmarks.boards.overview`)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmarks.boards.rows import Row, read_rows

#: What the picture shows: models from left to right, and attacks with the parameters that are asked
#: of them, their labels, colours and marks.
MODELS = {
    "pocket-llama": "aligned",
    "pocket-llama-hard1": "hardened, level 1",
    "pocket-llama-hard2": "level 2",
    "pocket-llama-hard3": "level 3",
}
ATTACKS: tuple[tuple[str, dict[str, object], str, str, str], ...] = (
    ("random-search", {}, "random search, 8 steps", "#7f7f7f", "v"),
    ("gcg", {"steps": 8}, "GCG, 8 steps", "#56b4e9", "s"),
    ("gcg", {"steps": 32}, "GCG, 32 steps", "#0072b2", "D"),
    ("ssr-probe", {"steps": 64}, "subspace rerouting, 64 steps", "#d55e00", "o"),
    ("refusal-direction", {"mode": "ablate"}, "refusal direction ablated", "#009e73", "^"),
)
_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "reroute", "font.size": 10.0}


def picture(rows: Sequence[Row], out: Path) -> None:
    """Writes the SVG: success at 1 with 95 % intervals."""
    with matplotlib.rc_context(_SETTINGS):  # type: ignore[arg-type]
        figure = Figure(figsize=(8.2, 3.5), layout="constrained", facecolor="white")
        axes = figure.subplots()
        for at, (attack, wanted, label, colour, mark) in enumerate(ATTACKS):
            shift = (at - (len(ATTACKS) - 1) / 2) * 0.13
            for place, model in enumerate(MODELS):
                row = _row(rows, model, attack, wanted)
                if row is None or row.asr is None:
                    continue
                x = place + shift
                axes.plot([x, x], [row.asr_low or 0.0, row.asr_high or 0.0], color=colour, lw=2)
                axes.plot([x], [row.asr], mark, color=colour, label=label, markersize=6)
        axes.set_xticks(range(len(MODELS)), list(MODELS.values()))
        axes.set_ylim(-0.03, 1.03)
        axes.set_ylabel("attack success rate, 95 % interval")
        axes.grid(axis="y", alpha=0.4)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(
            unique.values(), unique.keys(), loc="outside upper center", ncols=3, frameon=False
        )
        figure.savefig(out, format="svg", metadata={"Date": None})


def _row(rows: Sequence[Row], model: str, attack: str, wanted: dict[str, object]) -> Row | None:
    for row in rows:
        same = all(row.params.get(key) == value for key, value in wanted.items())
        if (row.model, row.attack) == (model, attack) and same and not row.origin_model:
            return row
    return None


def main() -> None:
    """Draws the picture of the committed boards."""
    parser = argparse.ArgumentParser(description="Draw README's picture.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="output of a run")
    parser.add_argument("--out", type=Path, default=Path("results/overview.svg"), metavar="FILE")
    args = parser.parse_args()
    picture(read_rows(args.folders), args.out)


if __name__ == "__main__":
    main()
