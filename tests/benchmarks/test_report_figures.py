"""What the page concludes from records written here, and what its figures show of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from benchmarks.boards.success import wilson
from benchmarks.report import plots
from benchmarks.report.data import Board, Results, read_results
from benchmarks.report.page import render
from benchmarks.storage.records import FirstSuccess, Judgement, Record, Seconds

REQUESTS = 8
#: Successes of each attack on each model, of the first requests.
SUCCESSES = {
    "direct": {"one": 0, "two": 2},
    "gcg": {"one": 8, "two": 8},
    "pgd": {"one": 8, "two": 7},
    "random-search": {"one": 1, "two": 2},
    "prefill": {"one": 3},
}


def results(folder: Path, successes: Mapping[str, Mapping[str, int]], **changes: Any) -> Results:
    """Searches whose loss falls by halves, and that succeed after as many seconds as requests."""
    rows, verdicts = [], []
    for attack, by_model in successes.items():
        for model, good in by_model.items():
            for at in range(REQUESTS):
                done = at < good and attack != "direct"
                rows.append(
                    Record(
                        key=f"{attack}-{model}-{at}",
                        model=model,
                        attack=attack,
                        params={},
                        attack_hash=attack,
                        threat_model="prompt",
                        behavior_id=f"pocket-test-{at:03}",
                        seed=0,
                        status="ok",
                        prompts=("p",),
                        completions=("c",),
                        losses=(1.0, 0.5, 0.25 * (at + 1)) if attack != "direct" else (),
                        steps=3 if attack != "direct" else 1,
                        seconds=Seconds(search=float(at + 1)),
                        first_success=FirstSuccess(1, at + 1.0, 1000 * (at + 1)) if done else None,
                        **changes,
                    )
                )
                verdicts.append(
                    Judgement(
                        rows[-1].key, "reference", 0, at < good, "knows" if at < good else "refused"
                    )
                )
    for name, items in (("records", rows), ("judgements", verdicts)):
        lines = [json.dumps(dataclasses.asdict(item)) + "\n" for item in items]
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    return read_results([folder], None)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    (found,) = results(
        tmp_path, {name: own for name, own in SUCCESSES.items() if name != "prefill"}
    ).boards
    return found


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn from now on; panels try out their content on one of their own."""
    figures: list[Figure] = []

    class Kept(Figure):
        def savefig(self, *args: Any, **kwargs: Any) -> None:
            figures.append(self)
            super().savefig(*args, **kwargs)

    monkeypatch.setattr(plots, "Figure", Kept)
    return figures


def curves(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    """What is drawn with a name."""
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


def test_the_headline_names_the_best_and_what_it_cannot_be_told_from(board: Board) -> None:
    assert (board.models, board.common, board.seeds) == (["one", "two"], ["one", "two"], 1)
    rates = {one.label: one.rate.mean for one in board.standings}
    assert rates == {"gcg": 1.0, "pgd": 15 / 16, "random-search": 3 / 16}
    assert list(rates) == ["gcg", "pgd", "random-search"], "the best first, no baseline"
    best, pgd, poor = board.standings
    assert (best.behind, best.apart, pgd.behind) == (0.0, False, 1 / 16)
    assert pgd.behind_low == 0.0 and not pgd.apart, "one request of eight is no difference"
    assert poor.apart and poor.behind == 13 / 16
    assert [one.label for one in board.rivals] == ["pgd"]
    assert board.verdicts == (1, 1, 0), "ahead of pgd on one model, tied with it on the other"
    assert board.unattacked == 1 / 8
    assert best.rate.n == REQUESTS


def test_the_headline_compares_on_common_models_alone(tmp_path: Path) -> None:
    (board,) = results(tmp_path, SUCCESSES).boards
    assert board.common == ["one"] and board.unattacked == 0.0
    rates = {one.label: one.rate.mean for one in board.standings}
    assert rates == {"gcg": 1.0, "pgd": 1.0, "prefill": 3 / 8, "random-search": 1 / 8}
    assert board.verdicts == (0, 1, 0)


def test_no_model_in_common_is_no_headline(tmp_path: Path) -> None:
    (board,) = results(tmp_path, {"gcg": {"one": 8}, "pgd": {"two": 8}}).boards
    assert (board.common, board.standings, board.rivals) == ([], [], [])
    assert board.unattacked is None


def test_the_page_says_how_far_judges_agree_and_prompts_transfer(tmp_path: Path) -> None:
    results(tmp_path, {"gcg": {"one": 5}})
    records, rows = tmp_path / "records.jsonl", tmp_path / "judgements.jsonl"
    # A judge who calls two of the five successes none, and one of the others one.
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    other = [
        {**row, "judge": "phrases", "success": at in (2, 3, 4, 5)} for at, row in enumerate(lines)
    ]
    sent = [
        {**row, "key": f"{row['key']}-sent", "model": "two"}
        | {"origin": row["key"], "origin_model": "one", "steps": 1, "losses": ()}
        for row in map(json.loads, records.read_text().splitlines())
    ]
    judged = [
        {**row, "key": f"{row['key']}-sent", "success": at < 2} for at, row in enumerate(lines)
    ]
    for path, more in ((records, sent), (rows, [*other, *judged])):
        with path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in more)
    found = read_results([tmp_path], None)
    assert found.agreement == [("phrases", "reference", 5 / 8, 1, 2, 8)]
    text = render(found, completions=False)
    assert '<td class="n">0.62</td><td class="n">1</td><td class="n">2</td>' in text
    (matrix,) = [one for one in found.transfers if one.judge == "reference"]
    share = matrix.cells["one", "two"]
    assert share.rate == 2 / 8
    assert f"<strong>0.25</strong> [{share.low:.2f}, {share.high:.2f}]" in text


def test_the_forest_has_every_row_with_its_interval(board: Board, drawn: list[Figure]) -> None:
    assert "<svg" in plots.forest(board)
    (axes,) = drawn[0].axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == [
        *("one", "gcg", "pgd", "random-search", "direct"),
        *("two", "gcg", "pgd", "direct", "random-search"),
    ]
    points = {
        int(line.get_ydata()[0]): line.get_xdata()[0]
        for line in axes.lines
        if line.get_marker() == "o"
    }
    assert points[1] == 1.0 and points[8] == 2 / 8 and 0 not in points and 5 not in points
    spans = {
        tuple(line.get_xdata())
        for line in axes.lines
        if line.get_linestyle() == "-" and len(line.get_xdata()) == 2
    }
    assert wilson(7, 8) in spans


def test_survival_ends_at_the_share_that_succeeded(board: Board, drawn: list[Figure]) -> None:
    def seconds(entry: Any) -> float | None:
        first = entry.record.first_success
        return first.seconds if first else None

    assert plots.survival(board, seconds, "Seconds")
    by_model = {axes.get_title(): curves(axes) for axes in drawn[0].axes}
    assert set(by_model) == {"one", "two"} and "direct" not in by_model["one"]
    x, y = by_model["two"]["pgd"]
    assert x[1:8] == [1, 2, 3, 4, 5, 6, 7] and x[-1] == 8, "drawn on to the longest of the panel"
    assert y == [at / 8 for at in range(8)] + [7 / 8]


def test_an_attack_has_one_colour_on_a_board(board: Board, drawn: list[Figure]) -> None:
    plots.costs(board)
    plots.survival(board, lambda entry: entry.record.seconds.search, "Seconds")
    costs, survival = (
        {str(line.get_label()): line.get_color() for axes in figure.axes for line in axes.lines}
        for figure in drawn
    )
    shared = {"gcg", "pgd", "random-search"}
    assert {name: costs[name] for name in shared} == {name: survival[name] for name in shared}
    assert len({costs[name] for name in (*shared, "direct")}) == 4
    x, y = curves(drawn[0].axes[0])["pgd"]
    assert (x, y) == ([4.5], [1.0]), "median seconds and success"


def test_losses_are_medians_over_requests(board: Board, drawn: list[Figure]) -> None:
    assert plots.losses(board)
    by_attack = {axes.get_title(): curves(axes) for axes in drawn[0].axes}
    assert set(by_attack) == {"gcg", "pgd", "random-search"}
    steps, values = by_attack["gcg"]["one"]
    assert steps == [1, 2, 3] and values == [1.0, 0.5, 0.25 * 4.5]


def test_categories_show_the_share_of_each(board: Board, drawn: list[Figure]) -> None:
    known = {f"pocket-test-{at:03}": "even" if at % 2 == 0 else "odd" for at in range(REQUESTS)}
    assert plots.categories(board, known)
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["even", "odd"]
    shown = [text.get_text() for text in axes.texts]
    names = [text.get_text() for text in axes.get_yticklabels()]
    # pgd fails on one model's last request, which is odd; the baseline succeeds on the first two.
    assert shown[2 * names.index("pgd") :][:2] == ["1.00", "0.88"]
    assert shown[2 * names.index("direct") :][:2] == ["0.12", "0.12"]
    assert plots.categories(board, dict.fromkeys(known, "one")) == "", "nothing to compare"


def test_side_effects_join_the_pareto_front(board: Board, drawn: list[Figure]) -> None:
    assert plots.side_effects(board) == "", "nothing changes the model"
    # Refusals left and KL, by attack: pgd is beaten by gcg.
    points = {"gcg": (0.1, 0.5), "pgd": (0.4, 0.9), "random-search": (0.0, 2.0)}
    lines = [
        dataclasses.replace(
            line,
            row=dataclasses.replace(
                line.row,
                refusal_rate=points[line.label][0],
                harmless_kl=points[line.label][1],
            ),
        )
        for line in board.lines
        if line.label in points and line.row.model == "one"
    ]
    assert plots.side_effects(dataclasses.replace(board, lines=lines))
    (axes,) = drawn[-1].axes
    assert curves(axes)["pgd"] == ([0.9], [0.4])
    (front,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert list(zip(front.get_xdata(), front.get_ydata(), strict=True)) == [(0.5, 0.1), (2.0, 0.0)]
