"""The page about results in headless Chromium: it runs nothing hostile, filters, sorts, prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.studies.browser import browser, found_by, opened
from conftest import ROOT
from runs import hostile_page

pytestmark = pytest.mark.skipif(browser() is None, reason="no Chromium")
RUN = ROOT / "results" / "pocket-subspace-norm"
#: Leaves a mark on the document of a page that runs any of it.
RUNS = "document.documentElement.dataset.ran=1"
ACTIVE = f'''"><img src=x onerror="{RUNS}"><svg onload='{RUNS}'><script>{RUNS}</script>'''
#: Does what a user would, and leaves what there is to see then.
USES = """
const body = () => [...document.querySelector("table.rows").tBodies];
const seen = (column) => body().map((group) => value(group, column));
const column = (name) => [...document.querySelectorAll("table.rows thead th")].find(
  (head) => head.textContent === name);
const found = {};
const asr = column("ASR");
asr.querySelector("button").click();
found.down = [asr.ariaSort ?? asr.getAttribute("aria-sort"), seen(asr.cellIndex)];
asr.querySelector("button").click();
found.up = [asr.ariaSort ?? asr.getAttribute("aria-sort"), seen(asr.cellIndex)];
const success = column("To success, s");
body()[0].rows[0].cells[success.cellIndex].dataset.value = "";
success.querySelector("button").click();
found.missing = seen(success.cellIndex);
column("Attack").querySelector("button").click();
found.names = seen(0);
filter.value = "HARD2";
filter.dispatchEvent(new Event("input"));
found.models = body().filter((group) => !group.hidden).map((group) => value(group, 1));
found.rows = groups.length;
found.count = document.getElementById("count").textContent;
document.getElementById("open").click();
found.open = document.querySelectorAll("tbody:not([hidden]) > tr > td > details[open]").length;
found.dark = matchMedia("(prefers-color-scheme: dark)").matches;
found.paper = getComputedStyle(document.body).backgroundColor;
found.schemes = [...document.styleSheets[0].cssRules].filter((rule) => rule.media)
  .map((rule) => rule.media.mediaText).filter((text) => text.includes("dark"));
document.documentElement.dataset.found = JSON.stringify(found);
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    assert main(["report", str(RUN), "--out", str(out)]) == 0
    return out


def test_a_browser_runs_nothing_hostile(tmp_path: Path) -> None:
    def root(document: str) -> str:
        found = re.search(r"<html[^>]*>", document)
        assert found
        return found[0]

    careless = tmp_path / "careless.html"
    careless.write_text(f"<!doctype html><title>t</title><p>{ACTIVE}</p>", "utf-8")
    assert "data-ran" in root(opened(careless)[0]), "the browser would have run them"
    document, console = opened(hostile_page(RUN, tmp_path, ACTIVE))
    assert "onerror" in document, "the strings are on the page"
    assert "data-ran" not in root(document)
    assert not console


def test_the_page_filters_and_sorts(page: Path) -> None:
    document, console = opened(page, script=USES)
    found = found_by(document)
    assert isinstance(found, dict) and not console
    (down, falling), (up, rising) = found["down"], found["up"]
    assert (down, up) == ("descending", "ascending")
    assert falling == sorted(falling, reverse=True) and rising == sorted(rising)
    assert falling[0] > falling[-1]
    *known, last = found["missing"]
    assert last is None, "what was not measured goes last"
    assert known == sorted(known, reverse=True)
    names = [name.split()[0] for name in found["names"]]
    assert names == sorted(names) and len(set(names)) > 1
    assert set(found["models"]) == {"pocket-llama-hard2"}
    assert 0 < found["open"] == len(found["models"]) < found["rows"]
    assert found["count"] == f"{len(found['models'])} of {found['rows']} rows"


def test_the_page_is_dark_on_dark_screens_alone(page: Path) -> None:
    seen = [found_by(opened(page, script=USES, dark=dark)[0]) for dark in (False, True)]
    assert [(one["dark"], one["paper"]) for one in seen] == [
        (False, "rgb(255, 255, 255)"),
        (True, "rgb(20, 24, 28)"),
    ]
    assert all("screen" in text for text in seen[1]["schemes"]) and seen[1]["schemes"]
