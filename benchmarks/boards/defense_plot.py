"""The picture of a board with defences: attack success against over-refusal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from attacks.core.errors import BadInput
from benchmarks.boards.columns import TOLERABLE, defense_labels
from benchmarks.boards.ranking import BASELINE
from benchmarks.boards.rows import Row
from benchmarks.boards.tables import attack_labels

#: Okabe and Ito's colours, which the colour-blind can tell apart; marks differ as well.
_BLUE, _RED, _GREY = "#0072B2", "#D55E00", "#666666"
#: Filling and size of marks by adaptivity, so that both are seen where they fall together.
_LOOKS = {"static": ("white", 11), "adaptive": (_BLUE, 6), "": (_BLUE, 11)}
_SETTINGS: Any = {
    "font.size": 11,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "text.parse_math": False,
}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG image: a line for each defence of each model, a panel for each attack.

    The first panel holds the share of harmless requests that are refused or blocked, by the row of
    `direct`; above the dashed line the defence fails. Hollow marks are attacks that do not know of
    the defence, filled ones attacks that do, and a stroke joins the two.

    Raises:
        BadInput: no attack was run against a defence whose over-refusal is known.
    """
    cost = {
        (row.model, row.judge, row.defense_hash): row.over_refusal
        for row in rows
        if row.attack == BASELINE and row.over_refusal is not None
    }
    attacked = [row for row in rows if row.attack != BASELINE and row.asr is not None]
    known = {(row.model, row.judge, row.defense_hash) for row in attacked}
    guards = defense_labels(rows)
    # From the bottom up: the dearest last of all.
    lines = sorted(
        known & set(cost),
        key=lambda line: (*line[:2], line[2] != "", cost[line], guards[line[2]]),
        reverse=True,
    )
    if not any(defense for _, _, defense in lines):
        raise BadInput(
            "nothing to plot: this needs attacks on defended models, and direct with --harmless"
        )
    labels = attack_labels(rows)
    attacks = list(dict.fromkeys(row.attack_hash for row in attacked))
    several = len({model for model, _, _ in lines}) > 1
    with matplotlib.rc_context(_SETTINGS):
        inches = (3.0 + 2.4 * (1 + len(attacks)), 1.6 + 0.32 * len(lines))
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasAgg(figure)
        first, *panels = figure.subplots(1, 1 + len(attacks), sharey=True)
        for at, line in enumerate(lines):
            over = cost[line] or 0.0
            colour = _RED if line[2] and over > TOLERABLE else _BLUE
            first.plot(over, at, "D", color=colour, markersize=7)
        first.axvline(TOLERABLE, ls="--", color=_GREY, linewidth=1)
        first.set_title("harmless refused")
        for axes, attack in zip(panels, attacks, strict=True):
            for at, line in enumerate(lines):
                own = [
                    row
                    for row in attacked
                    if (row.model, row.judge, row.defense_hash) == line
                    and row.attack_hash == attack
                ]
                axes.plot([row.asr for row in own], [at] * len(own), "-", color=_BLUE, alpha=0.5)
                for row in sorted(own, key=lambda row: row.adaptivity, reverse=True):
                    fill, size = _LOOKS[row.adaptivity]
                    mark = "o" if row.defense else "|"
                    axes.plot(row.asr, at, mark, color=_BLUE, mfc=fill, markersize=size)
            axes.set_title(f"success of {labels[attack]}")
        names = [
            (guards[defense] or "no defence") + (f", {model}" if several else "")
            for model, _, defense in lines
        ]
        first.set_yticks(range(len(lines)), names)
        for axes in (first, *panels):
            axes.set_xlim(-0.05, 1.05)
        keys = [
            Line2D([], [], ls="", marker="o", color=_BLUE, mfc=fill, label=told, markersize=size)
            for told, (fill, size) in _LOOKS.items()
            if told
        ]
        figure.legend(handles=keys, loc="outside lower right", ncols=2)
        figure.savefig(path, dpi=100, metadata={"Software": None})
