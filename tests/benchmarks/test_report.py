"""The page about results: whole, self-contained, and deaf to hostile strings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.report import plots
from benchmarks.report.figures import Figures, shorter
from benchmarks.storage.store import read_records
from benchmarks.studies.browser import grown
from conftest import ROOT
from runs import hostile_page

RUN = ROOT / "results" / "pocket-recipes-search"
HOSTILE = '<script>alert("x")</script>{{ 7*7 }}\u202e\x1b[31m</style>'


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("report") / "report.html"
    assert main(["report", str(RUN), "--out", str(out)]) == 0
    return out.read_text("utf-8")


def test_the_page_is_self_contained_and_names_what_was_run(page: str) -> None:
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page)
    assert "@import" not in page and len(page) < 3_000_000
    records = read_records(RUN)
    for name in {record.model for record in records} | {record.attack for record in records}:
        assert name in page
    # Without being asked for, no completion is on it.
    assert not [record for record in records if record.completions[0] in page]


def test_a_page_of_5000_records_stays_under_3_mb(page: str, tmp_path: Path) -> None:
    times, few = 4, len(read_records(RUN))
    assert grown(RUN, tmp_path, 4 * few - 1) == 4 * few
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 0
    larger = (tmp_path / "r.html").read_text("utf-8")
    assert larger.count("<tr><td>") == few * times, "every cell has its row"
    each = (len(larger.encode()) - len(page.encode())) / (few * (times - 1))
    assert 0 < each < 200
    assert len(page.encode()) + (5000 - few) * each < 1_500_000


def test_figures_keep_what_is_seen() -> None:
    drawn = """M 0 0
    L 10.04 0 L 10.04 5.56 L 20 7.1 L 20.01 7.14 L 1e-05 -7.1 z"""
    assert shorter(drawn) == "M0 0H10V5.6L20 7.1 0 -7.1Z"
    assert shorter("M 1 2 L 1 2") == "M1 2H1", "a point with caps is seen"
    assert shorter("M 0 2.5 C 0.663008 2.5 1.29895 2.236584 1.767767 1.767767 z") == (
        "M0 2.5C0.66 2.5 1.3 2.24 1.77 1.77Z"
    )
    figures = Figures(plots.COLOURS)
    with plots._figure(1.0) as (figure, done):
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], "o-", color=next(iter(plots.COLOURS)), label="<b> & 'c'")
        axes.set_title('"></svg><script>')
        axes.legend()
    once, again = (figures.inline(done(), 'a "label" <i>') for _ in range(2))
    assert once.startswith('<svg role="img" aria-label="a &quot;label&quot; &lt;i&gt;" width=')
    assert ">&lt;b&gt; &amp; 'c'</text>" in once and "<script" not in once
    assert "stroke:var(--series-0)" in figures.css and "#0072b2" not in once + figures.css
    assert set(re.findall(r'class="(s\d+)"', once)) <= set(re.findall(r"\.(s\d+){", figures.css))
    ids = [set(re.findall(r'id="(i\d+)"', svg)) for svg in (once, again)]
    assert all(ids) and not ids[0] & ids[1], "one page, one id"
    for svg, own in zip((once, again), ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)(i\d+)', svg)) == own


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    text = hostile_page(ROOT / "results" / "pocket-subspace-norm", tmp_path, HOSTILE).read_text(
        "utf-8"
    )
    assert "alert(" in text
    assert '<script>alert("x")' not in text and "\x1b" not in text and "\u202e" not in text


def test_a_folder_without_records_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert "no records.jsonl" in capsys.readouterr().err
