"""The page about results: whole, self-contained, and deaf to hostile strings."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.storage.store import read_records
from conftest import ROOT

RUN = ROOT / "results" / "pocket-recipes-search"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
#: Leaves a mark on the document of a page that runs any of it.
RUNS = "document.documentElement.dataset.ran=1"
ACTIVE = f'''"><img src=x onerror="{RUNS}"><svg onload='{RUNS}'><script>{RUNS}</script>'''
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


def hostile_page(folder: Path, text: str) -> Path:
    """The page of a run whose prompts, answers and errors are `text`."""
    run, out = folder / "run", folder / "report.html"
    shutil.copytree(RUN, run)
    records = [
        dataclasses.replace(record, prompts=(text,), completions=(text,), error=text)
        for record in read_records(RUN)
    ]
    lines = "".join(f"{json.dumps(dataclasses.asdict(record))}\n" for record in records)
    (run / "records.jsonl").write_text(lines, "utf-8")
    assert main(["report", str(run), "--with-completions", "--out", str(out)]) == 0
    return out


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    text = hostile_page(tmp_path, HOSTILE).read_text("utf-8")
    assert "alert(" in text
    assert '<script>alert("x")' not in text and "\x1b" not in text and "\u202e" not in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_runs_nothing_hostile(tmp_path: Path) -> None:
    def shown(page: Path) -> str:
        return subprocess.run(
            [str(CHROMIUM), "--headless", "--no-sandbox", "--dump-dom", page.as_uri()],
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def root(document: str) -> str:
        found = re.search(r"<html[^>]*>", document)
        assert found
        return found[0]

    careless = tmp_path / "careless.html"
    careless.write_text(f"<!doctype html><title>t</title><p>{ACTIVE}</p>", "utf-8")
    assert "data-ran" in root(shown(careless)), "the browser would have run them"
    document = shown(hostile_page(tmp_path, ACTIVE))
    assert "onerror" in document, "the strings are on the page"
    assert "data-ran" not in root(document)


def test_a_folder_without_records_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert "no records.jsonl" in capsys.readouterr().err
