"""The page about results: whole, self-contained, and deaf to hostile strings."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.storage.store import read_records
from conftest import ROOT

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


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(RUN, folder)
    records = [
        dataclasses.replace(record, prompts=(HOSTILE,), completions=(HOSTILE,), error=HOSTILE)
        for record in read_records(RUN)
    ]
    lines = "".join(f"{json.dumps(dataclasses.asdict(record))}\n" for record in records)
    (folder / "records.jsonl").write_text(lines, "utf-8")
    out = tmp_path / "report.html"
    assert main(["report", str(folder), "--with-completions", "--out", str(out)]) == 0
    text = out.read_text("utf-8")
    assert "alert(" in text
    assert '<script>alert("x")' not in text and "\x1b" not in text and "\u202e" not in text


def test_a_folder_without_records_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert "no records.jsonl" in capsys.readouterr().err
