"""Behaviour sets: shipped, public and from files; what is refused and how."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from benchmarks import public_sets
from benchmarks.behaviors import load_behaviors, names
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
        ("folder.jsonl", "Is a directory"),
        ("notes.txt", r"must end in \.jsonl or \.csv"),
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


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a data set looks as on the Hub; every public set is found in it."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    folder.mkdir()
    for name, entry in public_sets.PUBLIC_SETS.items():
        local = replace(entry, path=str(folder), revision=None)
        monkeypatch.setitem(public_sets.PUBLIC_SETS, name, local)
    return folder


def _publish(hub: Path, config: str, **splits: list[list[Any]]) -> None:
    files = [f"  - split: {split}\n    path: {split}.csv\n" for split in splits]
    card = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{''.join(files)}---\n"
    (hub / "README.md").write_text(card)
    for split, rows in splits.items():
        _csv(hub / f"{split}.csv", rows)


def test_jailbreakbench_pairs_its_twins(hub: Path) -> None:
    header = ["Index", "Goal", "Target", "Behavior", "Category", "Source"]
    rows = [[i, f"Goal {i}", f"Sure {i}", "Title", "Kind", "Original"] for i in range(21)]
    _publish(hub, "behaviors", harmful=[header, *rows], benign=[header, *rows])
    found = load_behaviors("jailbreakbench")
    assert found[0] == Behavior(
        "jbb-harmful-1", "Goal 0", "Sure 0", "Kind", True, twin="jbb-benign-1"
    )
    assert found[21] == Behavior("jbb-benign-1", "Goal 0", "Sure 0", "Kind", False)
    assert [row.id for row in found if row.target is None] == ["jbb-benign-11", "jbb-benign-21"]
    assert load_behaviors("jailbreakbench-harmful") == found[:21]
    assert load_behaviors("jailbreakbench-benign") == found[21:]


def test_advbench_drops_rotated_targets(hub: Path) -> None:
    rows = [[f"Do {i}", f"Sure {i}"] for i in range(1, 521)]
    _publish(hub, "default", train=[["prompt", "target"], *rows])
    found = load_behaviors("advbench")
    assert len(found) == 520
    assert [int(row.id.removeprefix("advbench-")) for row in found if row.target is None] == [
        *(62, 64, 65, 282, 283, 284, 459, 460)
    ]


@pytest.mark.parametrize(
    ("name", "config", "header", "cells", "text", "harmful"),
    [
        ("harmbench", "standard", ["prompt", "category"], ["P", "c"], "P", True),
        (
            "harmbench-contextual",
            "contextual",
            ["prompt", "context", "category"],
            ["P", "C", "c"],
            "C\n\n---\n\nP",
            True,
        ),
        ("harmbench-copyright", "copyright", ["prompt", "category"], ["P", "c"], "P", True),
        ("strongreject", "default", ["prompt", "category", "source"], ["P", "c", "s"], "P", True),
        ("xstest", "default", ["prompt", "type", "label"], ["P", "c", "safe"], "P", False),
        ("xstest", "default", ["prompt", "type", "label"], ["P", "c", "unsafe"], "P", True),
        ("or-bench-hard", "or-bench-hard-1k", ["prompt", "category"], ["P", "c"], "P", False),
    ],
)
def test_the_other_public_sets(
    hub: Path,
    name: str,
    config: str,
    header: list[str],
    cells: list[str],
    text: str,
    harmful: bool,
) -> None:
    _publish(hub, config, train=[header, cells])
    (row,) = load_behaviors(name)
    assert (row.text, row.category, row.harmful, row.target) == (text, "c", harmful, None)


def test_a_changed_column_is_named(hub: Path) -> None:
    _publish(hub, "default", train=[["question", "target"], ["Q", "T"]])
    with pytest.raises(BadInput, match="has no column 'prompt' any more, but question, target"):
        load_behaviors("advbench")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ConnectionError("Couldn't reach 'x' on the Hub\n(offline)"), "connect to the internet"),
        (FileNotFoundError("Dataset 'x' is a gated dataset on the Hub."), "accept its terms"),
    ],
)
def test_a_set_that_cannot_be_had_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: Exception, advice: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(BadInput, match=f"'advbench'.*{advice}.*pass a CSV file.*llm-attacks") as e:
        load_behaviors("advbench")
    assert "\n" not in str(e.value)


@pytest.mark.skipif(not PUBLIC_FILES.is_dir(), reason="the public files are not part of it")
@pytest.mark.parametrize(
    ("file", "rows", "harmful", "targets"),
    [
        ("advbench", 520, 520, 512),
        ("harmbench_text", 400, 400, 400),
        ("jailbreakbench_harmful", 100, 100, 100),
        ("jailbreakbench_benign", 100, 0, 100),
        ("strongreject", 313, 313, 0),
        ("xstest", 450, 200, 0),
        ("orbench_hard_1k", 1319, 0, 0),
    ],
)
def test_public_files(file: str, rows: int, harmful: int, targets: int) -> None:
    found = load_behaviors(str(PUBLIC_FILES / f"{file}.csv"))
    assert len(found) == rows
    assert sum(row.harmful for row in found) == harmful
    assert sum(row.target is not None for row in found) == targets
