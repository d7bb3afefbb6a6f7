"""What people see at a terminal: narrow boards, whole names, the best marked, nothing that runs."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.boards.brief import draw, draw_markdown
from benchmarks.boards.leaderboard import read_rows
from benchmarks.storage.store import read_records
from conftest import ROOT

RUN = ROOT / "results" / "pocket-recipes-search"


def console(width: int = 100, *, colours: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=colours, highlight=False)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("folder", ["pocket-recipes-search", "pocket-interventions", "village"])
def test_boards_fit_a_hundred_columns_and_hold_every_figure(folder: str) -> None:
    if not (ROOT / "results" / folder / "records.jsonl").is_file():
        pytest.skip("no records are kept of this run")
    rows = read_rows([ROOT / "results" / folder])
    place = console()
    draw(rows, place)
    text = shown(place)
    assert max(map(len, text.splitlines())) <= 100
    for row in rows:
        assert row.model in text and row.attack in text
        assert f"{row.asr:.2f} [{row.asr_low:.2f}, {row.asr_high:.2f}]" in text
    assert "How to read" not in text and "**" not in text


def test_the_best_of_each_model_is_green() -> None:
    rows = [row for row in read_rows([RUN]) if row.model == "pocket-llama-hard2"]
    place = console(colours=True)
    draw(rows, place)
    green = [line for line in shown(place).splitlines() if "\x1b[1;32m" in line]
    best = max(row.asr or 0.0 for row in rows)
    marked = [line for line in green if f"\x1b[1;32m{best:.2f} [" in line]
    assert len(marked) == sum(row.asr == best for row in rows)
    assert not [line for line in green if line.lstrip().startswith("direct")]


def test_what_columns_mean_is_said_when_asked() -> None:
    place = console()
    draw(read_rows([RUN]), place, explain=True)
    assert "ASR: attack success rate" in " ".join(shown(place).split())


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(RUN, tmp_path / "run"))
    hostile = "\x1b[31m[bold]x[/bold] | y\n# z"
    rows = [dataclasses.asdict(record) for record in read_records(RUN)]
    lines = "".join(json.dumps({**row, "model": hostile}) + "\n" for row in rows)
    (folder / "records.jsonl").write_text(lines)
    place = console()
    draw(read_rows([folder]), place)
    assert "\x1b" not in shown(place) and "[bold]x[/bold] | y # z" in shown(place)


def test_wide_markdown_is_drawn_in_parts() -> None:
    """Each with the first column, so that a row is known in all of them."""
    heads = ["Attack", *(f"Column number {at}" for at in range(8))]
    rows = [[f"attack-{row}", *(f"{row}.{at}" for at in range(8))] for row in range(2)]
    rows[1] = [f"**{cell}**" for cell in rows[1]]
    lines = [heads, [":--", *["--:"] * 8], *rows]
    place = console(colours=True)
    draw_markdown("".join(f"| {' | '.join(line)} |\n" for line in lines), place)
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown(place))
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("attack-0") == text.count("attack-1") == 2 and "|" not in text
    assert all(cell.strip("*") in text for row in rows for cell in row) and "**" not in text
    assert "\x1b[1m" in shown(place), "what was chosen is bold"


def test_markdown_of_our_own_is_drawn_or_left_as_it_is() -> None:
    table = "### A \\| b\n\n| Name | n |\n| :-- | --: |\n| a\\|b \\[c\\] | 12 |\n"
    place = console()
    draw_markdown(table, place)
    assert "A | b" in shown(place) and "a|b [c]" in shown(place) and ":--" not in shown(place)
    narrow = console(width=12)
    draw_markdown(table, narrow)
    assert "| a\\|b \\[c\\] | 12 |" in shown(narrow)
