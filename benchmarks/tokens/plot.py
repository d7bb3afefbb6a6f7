"""The picture of a study of control tokens: true over false refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.tokens.results import Report

#: Okabe and Ito's colours, which the colour-blind can tell apart.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SETTINGS: Any = {
    "font.size": 12,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    # Names of categories are text from elsewhere, and a dollar sign would begin a formula.
    "text.parse_math": False,
}


def draw(report: Report, path: Path) -> None:
    """Write the curves as a PNG image; a circle marks the threshold from the training prompts."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(7.5, 5.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], ":", color="#666666", linewidth=1.5)
        for number, curve in enumerate(report.curves):
            colour = _COLOURS[number % len(_COLOURS)]
            x = [0.0, *(point.false_refusals for point in curve.points), 1.0]
            y = [0.0, *(point.true_refusals for point in curve.points), 1.0]
            label = f"{curve.about or 'all refusals'}, area {curve.auc:.3f}"
            axes.plot(x, y, "-", color=colour, linewidth=2 if curve.about else 3, label=label)
            axes.plot(curve.test.false_refusals, curve.test.true_refusals, "o", color=colour)
        axes.set_xlabel("False refusals (harmless prompts)")
        axes.set_ylabel("True refusals (harmful prompts)")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.legend(loc="lower right")
        figure.savefig(path, dpi=100, metadata={"Software": None})
