"""The pictures of an inspection. No text of prompts or models goes into one: only figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from attacks.core.analysis.survey import BROKEN
from benchmarks.inspect.results import GROUPS, THOUGHT, Report

#: Okabe and Ito's colours, which the colour-blind can tell apart; markers differ as well.
_BLUE, _RED, _ORANGE, _GREEN, _PURPLE = "#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7"
_GREY = "#666666"
_STYLE = {
    "harmless": (_BLUE, "s", "-"),
    "harmful": (_RED, "o", "-"),
    "random": (_ORANGE, "^", "--"),
    "ablation": (_GREEN, "D", "-."),
    "ssr": (_PURPLE, "v", "-"),
}
#: The groups of `Thinking` in the styles of `GROUPS`.
_THOUGHT_STYLE = {"refused": "harmful", "answered": "ssr", "harmless": "harmless"}
_NOTE: dict[str, Any] = {"color": _GREY, "fontsize": 11}
_DPI = 100
_COLOURS = 128
_WIDTH = 9.0
_SETTINGS: Any = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "lines.linewidth": 2,
    "lines.markersize": 7,
}
#: Points of a curve up to which each is marked.
_MANY = 12
#: Cells of a heat map up to which each bears its number.
_MOST_NUMBERS = 64


def draw(report: Report, folder: Path) -> dict[str, str]:
    """Writes the pictures as PNG files; their names by what they show, missing ones left out."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, (needed, height, draw_on) in _PICTURES.items():
        path = folder / f"{name}.png"
        if not needed(report):
            path.unlink(missing_ok=True)
            continue
        with _figure(path, height(report)) as figure:
            draw_on(figure, report)
        written[name] = path.name
    return written


@contextmanager
def _figure(path: Path, height: float) -> Iterator[Figure]:
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        # Few colours make small files, and pictures are kept in repositories.
        with BytesIO() as drawn:
            figure.savefig(drawn, format="png")
            Image.open(drawn).convert("RGB").quantize(_COLOURS).save(path, optimize=True)


def _layers(figure: Figure, report: Report) -> None:
    found = report.layers
    panels: list[tuple[str, Sequence[float | None]]] = [
        ("Accuracy of the probe,\nheld-out prompts", found.accuracy),
        ("Separation of the classes,\nstandard deviations", found.separation),
    ]
    if any(effect is not None for effect in found.effect):
        whole = [
            None if kl is not None and kl > BROKEN else effect
            for effect, kl in zip(found.effect, found.kl, strict=True)
        ]
        panels.append(("Share of the refusal that\nablation takes away", whole))
    grid = figure.subplots(1, len(panels), squeeze=False)
    for axes, (title, values), colour in zip(grid[0], panels, (_BLUE, _RED, _GREEN), strict=False):
        _mark_layer(axes, found.chosen, len(found.accuracy))
        points = [float("nan") if value is None else value for value in values]
        axes.plot(range(len(points)), points, "o-", color=colour, **_markers(len(points)))
        axes.set_title(title)
        axes.set_ylim(bottom=min([0.0, *(value for value in points if value == value)]))
        _layer_axis(axes, len(points), ticks=6)
    broken = [at for at, kl in enumerate(found.kl) if kl is not None and kl > BROKEN]
    if len(panels) == 3 and broken:
        effects = grid[0][-1]
        effects.plot(broken, [0.0] * len(broken), "x", color=_GREY, label="breaks the model")
        # Room for the note under the crosses, and for the legend above.
        effects.set_ylim(-0.17, 1.25)
        effects.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])
        legend = effects.legend(loc="upper left", handletextpad=0, borderaxespad=0, frameon=True)
        legend.get_frame().set(alpha=1.0, linewidth=0)
    accuracy = grid[0][0]
    accuracy.set_ylim(min(0.4, *found.accuracy) - 0.02, 1.03)
    accuracy.axhline(0.5, color=_GREY, linestyle=":", linewidth=1.5)
    accuracy.text(1, 0.51, "chance", transform=accuracy.get_yaxis_transform(), **_NOTE, ha="right")


def _cosines(figure: Figure, report: Report) -> None:
    axes = figure.subplots()
    values = np.array(report.layers.cosines)
    _heat_map(figure, axes, values, "Cosine", limit=1.0)
    axes.set_xlabel("Direction of layer")
    axes.set_ylabel("Direction of layer")


def _plane(figure: Figure, report: Report) -> None:
    found, axes = report.plane, figure.subplots()
    for rows, group in ((found.harmless, "harmless"), (found.harmful, "harmful")):
        colour, marker, _ = _STYLE[group]
        points = np.array(rows)
        axes.scatter(
            points[:, 0], points[:, 1], s=28, c=colour, marker=marker, alpha=0.55, label=group, lw=0
        )
    for move in found.moves:
        axes.annotate(
            "",
            (move.end[0], move.end[1]),
            (move.start[0], move.start[1]),
            arrowprops={"arrowstyle": "->", "color": "#333333", "lw": 1.2},
        )
    for refused, marker, label in ((False, "v", "not refused"), (True, "X", "still refused")):
        ends = np.array([move.end for move in found.moves if move.refused == refused])
        if len(ends):
            axes.scatter(
                ends[:, 0],
                ends[:, 1],
                s=85,
                c=_PURPLE,
                marker=marker,
                edgecolors="black",
                zorder=3,
                label=f"attacked: {label}",
            )
    for set_label, index in ((axes.set_xlabel, 0), (axes.set_ylabel, 1)):
        set_label(f"Component {index + 1} ({found.explained[index]:.0%} of the variance)")
    axes.margins(0.06)
    figure.legend(loc="outside upper center", ncols=4, columnspacing=1.0, handletextpad=0.2)


def _heads(figure: Figure, report: Report) -> None:
    found = report.attribution
    panels = (
        ("Patching: share of the refusal", found.patching),
        ("Direct: written for refusal", found.direct),
    )
    for axes, (title, rows) in zip(figure.subplots(1, 2), panels, strict=True):
        _heat_map(figure, axes, np.array(rows), "")
        for layer, head in found.heads:
            axes.add_patch(
                Rectangle((head - 0.47, layer - 0.47), 0.94, 0.94, fill=False, lw=2.5, ec="black")
            )
        axes.set_title(title)
        axes.set_xlabel("Head")
        axes.set_ylabel("Layer")


def _depth(figure: Figure, report: Report) -> None:
    found, axes = report.attribution, figure.subplots()
    for group, values in (("harmful", found.harmful), ("harmless", found.harmless)):
        colour, marker, line = _STYLE[group]
        look = _markers(len(values))
        axes.plot(values, color=colour, marker=marker, linestyle=line, label=group, **look)
    axes.axhline(0, color=_GREY, linewidth=1)
    _layer_axis(axes, len(found.harmful), "Blocks that have run")
    axes.set_ylabel("Logit of refusing\nminus that of answering")
    axes.legend()


def _curves(figure: Figure, report: Report) -> None:
    axes = figure.subplots()
    _mark_layer(axes, report.layers.chosen, len(report.layers.accuracy))
    for order, (group, label) in enumerate(GROUPS.items()):
        rows = np.array(report.curves.groups[group])
        colour, marker, line = _STYLE[group]
        look = _markers(rows.shape[1], order)
        axes.plot(rows.mean(0), color=colour, marker=marker, linestyle=line, label=label, **look)
        axes.fill_between(
            range(rows.shape[1]), rows.min(0), rows.max(0), color=colour, alpha=0.13, lw=0
        )
    axes.axhline(0, color=_GREY, linewidth=1)
    axes.set_ylabel("Cosine with the layer's direction")
    _layer_axis(axes, rows.shape[1])
    figure.legend(loc="outside upper center", ncols=3)


def _angles(figure: Figure, report: Report) -> None:
    found, axes = report.angles, figure.subplots()
    curves = (
        (found.between, "harmless", "harmful and harmless"),
        (found.between_halves, "ssr", "the same, half of each"),
        (found.within_halves, "harmful", "two halves of harmful"),
    )
    for order, (rows, group, label) in enumerate(curves):
        colour, marker, line = _STYLE[group]
        means = [float(np.mean(row)) for row in rows]
        look = _markers(len(means), order)
        axes.plot(means, color=colour, marker=marker, linestyle=line, label=label, **look)
    axes.fill_between(
        range(len(found.between)),
        [min(row) for row in found.between],
        [max(row) for row in found.between],
        color=_BLUE,
        alpha=0.15,
        lw=0,
    )
    axes.axhline(float(np.mean(found.chance)), color=_GREY, linestyle="--", label="random")
    axes.axhspan(min(found.chance), max(found.chance), color=_GREY, alpha=0.15, lw=0)
    axes.set_ylabel("Principal angle, degrees")
    axes.set_ylim(0, 92)
    axes.set_yticks(range(0, 91, 15))
    _layer_axis(axes, len(found.between))
    figure.legend(loc="outside upper center", ncols=4, columnspacing=1.2, handletextpad=0.5)


def _cliff(figure: Figure, report: Report) -> None:
    """A row for the middle and one for the last probed layer: all of the thinking, and its end."""
    found = report.thinking
    assert found is not None
    grid = figure.subplots(2, 2, sharey=True)
    for axes, at in zip(grid, ((len(found.layers) - 1) // 2, len(found.layers) - 1), strict=True):
        for order, group in enumerate(found.counts):
            colour, marker, line = _STYLE[_THOUGHT_STYLE[group]]
            above = len(found.counts) - order + 2
            whole, late = found.whole[group][at], found.late[group][at]
            axes[0].plot(np.linspace(0, 100, len(whole)), whole, line, color=colour, zorder=above)
            places = range(1 - len(late), 1)
            look = {"color": colour, "marker": marker, "markersize": 5, "zorder": above}
            axes[1].plot(places, late, line, label=THOUGHT[group], **look)
            axes[1].plot(places, found.lens[group][at], ":", color=colour, linewidth=1.5)
        axes[1].axvspan(0.5 - found.closing, 0.5, color=_GREY, alpha=0.15, lw=0)
        axes[0].set_ylabel(f"P(refusal), layer {found.layers[at]}")
        axes[0].set_ylim(-0.04, 1.04)
    grid[0, 0].set_title("All of the thinking, stretched to one length")
    grid[0, 1].set_title("Its end; shaded: tokens that close it")
    grid[1, 0].set_xlabel("Per cent of the thinking")
    grid[1, 1].set_xlabel("Token, counted from the last before the answer")
    handles, labels = grid[0, 1].get_legend_handles_labels()
    handles.append(Line2D([], [], linestyle=":", color=_GREY, linewidth=1.5))
    figure.legend(handles, [*labels, "logit lens"], loc="outside upper center", ncols=4)


def _heat_map(
    figure: Figure, axes: Axes, values: np.ndarray, label: str, limit: float | None = None
) -> None:
    """A matrix (rows from the top), blue below zero and red above, so that zero is white."""
    limit = limit or float(np.abs(values).max()) or 1.0
    image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    figure.colorbar(image, ax=axes, label=label)
    axes.grid(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if values.size > _MOST_NUMBERS:
        return
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if abs(value) > 0.6 * limit else "black"
        # Adding 0.0 turns a negative zero, which a rounded number may be, into zero.
        text = f"{round(float(value), 2) + 0.0:.2f}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=11)


def _markers(count: int, order: int | None = None) -> dict[str, Any]:
    """How to mark the points of a curve: smaller where they are many.

    Of curves that cross every third point is marked then, another one by their `order`.
    """
    if count <= _MANY:
        return {}
    if order is None:
        return {"markersize": 4.5}
    return {"markersize": 6, "markevery": (order % 3, 3)}


def _mark_layer(axes: Axes, layer: int, count: int) -> None:
    right = layer > count / 2
    axes.axvline(layer, color=_GREY, linestyle="--", linewidth=1.5)
    axes.annotate(
        "aimed at",
        (layer, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if right else 4, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        **_NOTE,
    )


def _layer_axis(axes: Axes, count: int, label: str = "Layer", *, ticks: int = 12) -> None:
    axes.set_xlabel(label)
    axes.set_xlim(-0.3, count - 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True))


def _always(_: Report) -> bool:
    return True


def _attributed(report: Report) -> bool:
    return bool(report.attribution.patching)


def _thinks(report: Report) -> bool:
    return report.thinking is not None and not report.thinking.note


def _inches(height: float, *, layer: float = 0.0) -> Callable[[Report], float]:
    """So high, or higher where that gives each layer less than `layer`."""
    return lambda report: max(height, 1.2 + layer * len(report.layers.accuracy))


_Picture = tuple[
    Callable[[Report], bool], Callable[[Report], float], Callable[[Figure, Report], None]
]
#: By file name: whether there is anything to show, the height in inches, and what draws it.
_PICTURES: dict[str, _Picture] = {
    "layers": (_always, _inches(3.4), _layers),
    "cosines": (_always, _inches(5.6), _cosines),
    "plane": (_always, _inches(6.0), _plane),
    "heads": (_attributed, _inches(4.4, layer=0.17), _heads),
    "depth": (_attributed, _inches(4.0), _depth),
    "curves": (_always, _inches(5.2), _curves),
    "angles": (_always, _inches(4.8), _angles),
    "cliff": (_thinks, _inches(6.6), _cliff),
}
