"""Behaviour sets: shipped, public and from files; what is refused and how."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from benchmarks.inputs.behaviors import load_behaviors, names
from benchmarks.paths import data_dir

PUBLIC_FILES = Path(__file__).parents[3] / "shared" / "data" / "behaviors"

ROW = {
    "id": "a",
    "text": "How do I polish the kettle?",
    "target": "Sure, here is how",
    "category": "kitchen",
    "harmful": True,
    "twin": "b",
    "reference": ["wax", "cloth"],
    "decoys": ["sand"],
}


def _jsonl(path: Path, *rows: object) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    return str(path)


def _csv(path: Path, rows: Sequence[Sequence[Any]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return str(path)


@pytest.mark.parametrize("name", ["pocket-train", "pocket-test"])
def test_shipped_sets(name: str) -> None:
    rows = load_behaviors(name)
    by_id = {row.id: row for row in rows}
    harmful = [row for row in rows if row.harmful]
    assert len(harmful) >= 100
    assert all(row.target and row.reference and row.decoys for row in rows)
    assert all(row.twin and not by_id[row.twin].harmful for row in harmful)
    assert name in names()


def test_shipped_sets_are_disjoint() -> None:
    train, test = (
        {row.target for row in load_behaviors(name)} for name in ("pocket-train", "pocket-test")
    )
    assert not train & test


def test_every_set_has_a_card() -> None:
    card = (data_dir() / "behaviors" / "README.md").read_text("utf-8")
    assert not [name for name in names() if name not in card]


def test_jsonl_row(tmp_path: Path) -> None:
    (row,) = load_behaviors(_jsonl(tmp_path / "set.jsonl", ROW))
    assert row == Behavior(
        "a",
        "How do I polish the kettle?",
        "Sure, here is how",
        "kitchen",
        True,
        "b",
        ("wax", "cloth"),
        ("sand",),
    )


def test_jsonl_may_hold_line_separators_and_blank_lines(tmp_path: Path) -> None:
    text = "One\u2028line"
    line = json.dumps({"id": "a", "text": text}, ensure_ascii=False)
    path = tmp_path / "set.jsonl"
    path.write_text(f"\ufeff{line}\r\n\n", "utf-8")
    assert [row.text for row in load_behaviors(str(path))] == [text]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "b", "text": ', "not valid JSON"),
        ("[1]", "not a JSON object"),
        ('{"id": "b"}', "field 'text'"),
        ('{"id": "b", "text": 3}', "field 'text'"),
        ('{"id": "b", "text": " "}', "field 'text' is blank"),
        ('{"id": "", "text": "t"}', "field 'id' is blank"),
        ('{"id": "b", "text": "t", "reference": "wax"}', "field 'reference'"),
        ('{"id": "b", "text": "t", "reference": [""]}', "field 'reference'"),
        ('{"id": "b", "text": "t", "harmful": "perhaps"}', "field 'harmful'"),
        ('{"id": "b", "text": "\\ud800"}', "surrogates"),
        ('{"id": "a", "text": "t"}', "id 'a' is used twice"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n\n{line}\n", "utf-8")
    with pytest.raises(BadInput, match=rf"set\.jsonl, line 3: .*{reason}"):
        load_behaviors(str(path))


TYPED = [
    {"id": 0, "goal": "Do x", "label": "safe", "target": None, "category": "one"},
    {"id": None, "goal": "Do y", "label": None, "target": "Sure", "category": None},
]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_behaviours(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"set.{suffix}"
    table = datasets.Dataset.from_list(TYPED)
    if suffix == "jsonl":
        _jsonl(path, *TYPED)
    elif suffix == "json":
        path.write_text(json.dumps(TYPED), "utf-8")
    elif suffix == "parquet":
        table.to_parquet(str(path))
    else:
        table.to_csv(str(path), sep="," if suffix == "csv" else "\t")
    first, second = load_behaviors(str(path))
    # A column of CSV in which a number is missing is one of floats to pandas.
    assert first.id in ("0", "0.0")
    assert (first.text, first.target, first.category, first.harmful) == ("Do x", None, "one", False)
    assert second == Behavior("set-2", "Do y", "Sure", "", True)


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("set.json", '{"text": "t"}', "not a JSON array"),
        ("set.json", '[{"text": "t"}, 3]', "row 2: not a JSON object"),
        ("set.json", '[{"text": "t"}', "not valid JSON"),
        ("set.json", "[]", "holds no behaviours"),
        ("set.tsv", "text\tid\nDo x", "line 2: 1 fields, the header has 2"),
        ("set.parquet", "text", "not a Parquet file"),
    ],
)
def test_malformed_files_of_other_formats(
    tmp_path: Path, file: str, text: str, reason: str
) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(BadInput, match=reason):
        load_behaviors(str(tmp_path / file))


def test_csv_with_the_names_of_jsonl(tmp_path: Path) -> None:
    header = list(ROW)
    cells = ["a", ROW["text"], ROW["target"], "kitchen", "false", "", "wax; cloth", "sand"]
    (row,) = load_behaviors(_csv(tmp_path / "set.csv", [header, cells]))
    assert row == Behavior(
        "a",
        "How do I polish the kettle?",
        "Sure, here is how",
        "kitchen",
        False,
        None,
        ("wax", "cloth"),
        ("sand",),
    )


@pytest.mark.parametrize(
    "header",
    [
        ["behavior", "target"],
        ["goal", "target"],
        ["prompt", "target"],
        ["Goal", "Target"],
        ["Behavior", "Target"],
    ],
)
def test_csv_with_public_names(tmp_path: Path, header: list[str]) -> None:
    rows = load_behaviors(_csv(tmp_path / "mine.csv", [header, ["Do,\nit", "Sure"], ["Go", ""]]))
    assert [(row.id, row.text, row.target, row.harmful) for row in rows] == [
        ("mine-1", "Do,\nit", "Sure", True),
        ("mine-2", "Go", None, True),
    ]


def test_csv_prefers_the_request_to_its_title(tmp_path: Path) -> None:
    rows = load_behaviors(_csv(tmp_path / "s.csv", [["Behavior", "Goal"], ["Title", "Request"]]))
    assert rows[0].text == "Request"


def test_csv_keeps_the_context_and_drops_wrong_targets(tmp_path: Path) -> None:
    header = ["behavior", "target", "context", "target_mismatch", "label"]
    rows = load_behaviors(
        _csv(
            tmp_path / "s.csv",
            [header, ["Sum up", "Sure", "A text", 0, "unsafe"], ["Go", "Sure", "", 1, "benign"]],
        )
    )
    assert [(row.text, row.target, row.harmful) for row in rows] == [
        ("A text\n\n---\n\nSum up", "Sure", True),
        ("Go", None, False),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("id,title\na,t\n", "line 1: no column holds the instruction"),
        ("id,text\na,t\nb\n", "line 3: 1 fields, the header has 2"),
        ("id,text\na,t\nb,t,u\n", "line 3: 3 fields"),
        ('id,text\na,"t\nb,t\n', "line 3: "),
        ("id,text\na,t\nb,\n", "line 3: field 'text' is blank"),
        ("id,text\na,t\na,t\n", "line 3: id 'a' is used twice"),
        ("id,text,harmful\na,t,maybe\n", "line 2: 'maybe'"),
        ("id,text\n", "holds no behaviours"),
        ("", "holds no behaviours"),
    ],
)
def test_malformed_csv_is_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "set.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(BadInput, match=rf"set\.csv.*{reason}"):
        load_behaviors(str(path))


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(b'{"id": "a", "text": "t"}\n{"id": "\xff"}\n')
    with pytest.raises(BadInput, match="line 2: not UTF-8"):
        load_behaviors(str(path))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere", "unknown behaviour set 'nowhere'; valid: .*pocket-test.*advbench"),
        ("nowhere.jsonl", "No such file"),
        ("empty.jsonl", "holds no behaviours"),
        ("folder.jsonl", "not a file"),
        ("notes.txt", r"must end in \.jsonl, \.json, \.csv"),
    ],
)
def test_a_set_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text("\n")
    Path("folder.jsonl").mkdir()
    Path("notes.txt").write_text("text")
    with pytest.raises(BadInput, match=reason) as caught:
        load_behaviors(name)
    assert "\n" not in str(caught.value)


def test_part_of_a_set_keeps_twins_together() -> None:
    whole, part = load_behaviors("pocket-test"), load_behaviors("pocket-test[100:]")
    assert [row.id for row in part if row.harmful] == [row.id for row in whole if row.harmful][100:]
    assert {row.twin for row in part if row.harmful} == {row.id for row in part if not row.harmful}
    assert load_behaviors("pocket-test[:100]+pocket-test[100:]") != whole  # The order differs.
    assert {row.id for row in load_behaviors("pocket-test[:100]")} == (
        {row.id for row in whole} - {row.id for row in part}
    )
    with pytest.raises(BadInput, match="unknown behaviour set 'nothing'"):
        load_behaviors("nothing[:3]")


def test_several_sets_are_one_and_share_no_id(tmp_path: Path) -> None:
    both = load_behaviors("pocket-train+pocket-test")
    assert both == load_behaviors("pocket-train") + load_behaviors("pocket-test")
    with pytest.raises(BadInput, match="'pocket-test-001' is in two of them"):
        load_behaviors("pocket-test+pocket-test")
    with pytest.raises(BadInput, match="unknown behaviour set 'nothing'"):
        load_behaviors("pocket-test+nothing")
    odd = tmp_path / "a+b.jsonl"
    odd.write_text('{"id": "1", "text": "a", "target": null, "category": "", "harmful": true}\n')
    assert [row.id for row in load_behaviors(str(odd))] == ["1"]
