"""The pictures of a report: SVG whose colours are the page's, so that it fits light and dark."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from benchmarks.boards.leaderboard import big
from benchmarks.boards.rows import Entry
from benchmarks.boards.success import success_rate, wilson
from benchmarks.common.lines import one_line
from benchmarks.report.data import Board, Line

#: Stand-ins for colours that the page's style sheet decides, and that style sheet's names.
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f5fb8", "#8a6d3b")
_INK, _FAINT = "#010203", "#b0b0b1"
COLOURS = {c: f"var(--series-{at})" for at, c in enumerate(_SERIES)}
COLOURS |= {_INK: "var(--ink)", _FAINT: "var(--faint)"}
_MARKERS = "osD^vPX*"
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "reroute",
    "font.family": "sans-serif",
    "font.size": 10,
    # Names come from records, and a dollar sign in one is a dollar sign.
    "text.parse_math": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    **{"axes.edgecolor": _FAINT, "grid.color": _FAINT, "grid.alpha": 0.5},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10},
    **{"axes.titleweight": "bold", "legend.frameon": False, "legend.fontsize": 9},
    **{"axes.axisbelow": True, "axes.facecolor": "none", "figure.facecolor": "none"},
}
_WIDTH, _LONGEST = 9.5, 44
#: Curves in a panel: more could not be told apart.
MOST = len(_SERIES)


def forest(board: Board) -> str:
    """Attack success rates with 95 % intervals, model by model, the baseline as a dotted line."""
    groups = [(model, [x for x in board.lines if x.row.model == model]) for model in board.models]
    groups = [(model, [x for x in own if x.row.asr is not None]) for model, own in groups]
    colours = _colours(board)
    places = [(model, line) for model, own in groups for line in (None, *own) if own]
    with _figure(0.6 + 0.21 * len(places)) as (figure, drawn):
        axes: Any = figure.subplots()
        for place, (model, line) in enumerate(places):
            if line is None:
                if base := board.baseline.get(model):
                    own = len([1 for other, _ in places if other == model])
                    axes.plot([base.asr] * 2, [place + 0.5, place + own - 0.5], ":", color=_INK)
                continue
            row = line.row
            axes.plot([row.asr_low, row.asr_high], [place] * 2, "-", color=colours[line.label])
            axes.plot(row.asr, place, "o", color=colours[line.label], markersize=5)
        axes.set_yticks(
            range(len(places)),
            [_short(model if line is None else line.label) for model, line in places],
        )
        for tick, (_, line) in zip(axes.get_yticklabels(), places, strict=True):
            if line is None:
                tick.set_fontweight("bold")
        axes.set_ylim(len(places) - 0.3, -0.7)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("Attack success rate, 95 % interval; dotted: no attack")
        axes.grid(axis="x")
    return drawn()


def survival(board: Board, cost: Callable[[Entry], float | None], unit: str) -> str:
    """The share of behaviours with a verified success within a cost, with 95 % bands, by model."""
    colours = _colours(board)

    def draw(axes: Any, model: str) -> bool:
        found = False
        lines = [line for line in _searched(board) if line.row.model == model]
        end = max((cost(entry) or 0.0 for line in lines for entry in line.harmful), default=0.0)
        for line in lines:
            reached = [cost(entry) for entry in line.harmful]
            values = sorted(value for value in reached if value is not None and value > 0)
            if not values:
                continue
            # A search that spent its steps without success stays at risk, as on leaderboards:
            # so at any cost the curve is a plain share of all behaviours and seeds.
            counts = range(len(values) + 1)
            bands = [wilson(count, len(reached)) for count in counts]
            x, colour = [values[0] / 1.5, *values, end], colours[line.label]
            y = [count / len(reached) for count in counts]
            low, high = zip(*bands, bands[-1], strict=True)
            axes.step(x, [*y, y[-1]], where="post", color=colour, label=_short(line.label))
            axes.fill_between(x, low, high, step="post", color=colour, alpha=0.13, lw=0)
            found = True
        _log(axes, unit)
        axes.set_ylabel("Successful")
        return found

    return _panels(board.models, draw)


def costs(board: Board) -> str:
    """Success rate against the median seconds for one request, by model."""
    colours = _colours(board)

    def draw(axes: Any, model: str) -> bool:
        shown = [x for x in board.lines if x.row.model == model and x.row.seconds_median]
        for line in shown:
            row, colour = line.row, colours[line.label]
            if row.asr is None:
                continue
            axes.plot([row.seconds_median] * 2, [row.asr_low, row.asr_high], "-", color=colour)
            axes.plot(
                row.seconds_median, row.asr, _marker(line, board), color=colour,
                label=_short(line.label), linestyle="",
            )  # fmt: skip
        _log(axes, "Median seconds for a request")
        axes.set_ylabel("Success rate")
        return bool(shown)

    return _panels(board.models, draw)


def side_effects(board: Board) -> str:
    """Refusals left on harmful requests against the KL on harmless ones; the Pareto front joined.

    Empty where no attack of the board changes the model.
    """
    colours = _colours(board)

    def draw(axes: Any, model: str) -> bool:
        points = [
            (line.row.harmless_kl, line.row.refusal_rate, line)
            for line in board.lines
            if line.row.model == model and line.row.refusal_rate is not None
        ]
        known = [(kl, left, line) for kl, left, line in points if kl is not None and kl > 0]
        for kl, left, line in known:
            axes.plot(
                kl, left, _marker(line, board), color=colours[line.label],
                label=_short(line.label), linestyle="",
            )  # fmt: skip
        front = [(k, r) for k, r, _ in known if not any(_beats(o, (k, r)) for o in known)]
        axes.plot(*zip(*sorted(front), strict=True) if front else ([], []), "--", color=_FAINT)
        _log(axes, "KL on harmless requests, nats")
        axes.set_ylabel("Refusal rate")
        return bool(known)

    return _panels(board.models, draw)


def losses(board: Board) -> str:
    """Median best loss after each step with the quartiles, a panel for each attack."""
    models = sorted({line.row.model for line in _searched(board)})
    colours = {model: _SERIES[at % MOST] for at, model in enumerate(models)}
    labels = list(dict.fromkeys(line.label for line in _searched(board)))

    def draw(axes: Any, label: str) -> bool:
        found = False
        for line in board.lines:
            curves = [e.record.losses for e in line.harmful if len(e.record.losses) > 1]
            if line.label != label or not curves:
                continue
            length = max(map(len, curves))
            # A search that ended early keeps its last loss.
            rows = np.array([[*one, *[one[-1]] * (length - len(one))] for one in curves])
            low, middle, high = np.quantile(rows, [0.25, 0.5, 0.75], axis=0)
            steps, colour = np.arange(1, length + 1), colours[line.row.model]
            axes.plot(steps, middle, color=colour, label=_short(line.row.model))
            axes.fill_between(steps, low, high, color=colour, alpha=0.13, lw=0)
            found = True
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("Step")
        axes.set_ylabel("Best loss")
        return found

    return _panels(labels, draw)


def categories(board: Board, known: Mapping[str, str]) -> str:
    """Success rate by attack and category of the behaviours, over the board's models."""
    cells: dict[tuple[str, str], dict[str, list[bool]]] = {}
    for line in board.lines:
        for entry in line.harmful:
            category = known.get(entry.record.behavior_id)
            if category and entry.success is not None:
                outcomes = cells.setdefault((line.label, category), {})
                outcomes.setdefault(entry.record.behavior_id, []).append(entry.success)
    labels = list(dict.fromkeys(line.label for line in board.lines))
    columns = sorted({category for _, category in cells})
    if len(columns) < 2:
        return ""
    rates = [[success_rate(cells.get((a, c), {}).values()) for c in columns] for a in labels]
    values = np.array([[rate.mean if rate else math.nan for rate in row] for row in rates])
    with _figure(0.9 + 0.28 * len(labels)) as (figure, drawn):
        axes = figure.subplots()
        # White to a dark blue in both schemes; the numbers say the same.
        axes.pcolormesh(values, cmap="Blues", vmin=0, vmax=1, edgecolors=_FAINT, linewidth=0.5)
        axes.set_xticks(np.arange(len(columns)) + 0.5, [_short(name) for name in columns])
        axes.set_yticks(np.arange(len(labels)) + 0.5, [_short(name) for name in labels])
        axes.invert_yaxis()
        for (y, x), value in np.ndenumerate(values):
            if not math.isnan(value):
                dark = "white" if value > 0.55 else "black"
                axes.text(x + 0.5, y + 0.5, f"{value:.2f}", ha="center", va="center", color=dark)
    return drawn()


def _log(axes: Axes, label: str) -> None:
    """A share over a logarithmic axis, whose ticks are plain text."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    # Within two decades the powers of ten alone would be one tick or none.
    subs = (1.0, 2.0, 5.0) if high < 30 * low else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: big(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlabel(label)


def _panels(names: Sequence[str], draw: Callable[[Axes, str], bool]) -> str:
    """A panel for each name for which `draw` finds something, three in a row; one legend."""
    probe = Figure()
    shown = [name for name in names if draw(probe.add_subplot(), name)]
    if not shown:
        return ""
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    with _figure(0.9 + 2.3 * rows) as (figure, drawn):
        legend: dict[str, Any] = {}
        for at, name in enumerate(shown):
            axes = figure.add_subplot(rows, columns, at + 1)
            draw(axes, name)
            axes.set_title(_short(name))
            axes.grid(visible=True)
            if at % columns:
                axes.set_ylabel("")
            handles, labels = axes.get_legend_handles_labels()
            legend |= dict(zip(labels, handles, strict=True))
        figure.legend(
            legend.values(), legend.keys(), loc="outside upper center",
            ncols=min(3, len(legend)) or 1, handlelength=1.5,
        )  # fmt: skip
    return drawn()


@contextmanager
def _figure(height: float) -> Iterator[tuple[Figure, Callable[[], str]]]:
    """A figure to draw on, and the SVG of what was drawn."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")

        def drawn() -> str:
            with matplotlib.rc_context(_SETTINGS), io.StringIO() as file:
                figure.savefig(file, format="svg", metadata={"Date": None})
                return file.getvalue()

        yield figure, drawn


def _order(board: Board) -> list[str]:
    """The labels, those of searches first: curves are drawn of these alone."""
    searched = {line.label for line in _searched(board)}
    return sorted({x.label for x in board.lines}, key=lambda label: (label not in searched, label))


def _colours(board: Board) -> dict[str, str]:
    """The same for an attack in all figures of a board."""
    return {label: _SERIES[at % MOST] for at, label in enumerate(_order(board))}


def _marker(line: Line, board: Board) -> str:
    return _MARKERS[_order(board).index(line.label) // MOST % len(_MARKERS)]


def _searched(board: Board) -> list[Line]:
    return [x for x in board.lines if any(e.record.steps > 1 for e in x.harmful)]


def _beats(one: tuple[float, float, Line], other: tuple[float, float]) -> bool:
    better = one[0] <= other[0] and one[1] <= other[1]
    return better and (one[0] < other[0] or one[1] < other[1])


def _short(name: str) -> str:
    """A name from a record as a label."""
    line = one_line(name)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
