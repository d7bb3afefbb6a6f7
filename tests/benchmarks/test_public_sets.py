"""Public behaviour sets, on a local stand-in for the Hub."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from benchmarks.inputs import public_sets
from benchmarks.inputs.behaviors import load_behaviors

PUBLIC_FILES = Path(__file__).parents[3] / "shared" / "data" / "behaviors"


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
        with (hub / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)


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
        (
            "alpaca",
            "default",
            ["instruction", "input", "output"],
            ["P", "C", "c"],
            "C\n\n---\n\nP",
            False,
        ),
        ("or-bench-hard", "or-bench-hard-1k", ["prompt", "category"], ["P", "c"], "P", False),
        ("catqa", "default", ["Category", "Subcategory", "Question"], ["c", "s", "P"], "P", True),
        ("maliciousinstruct", "default", ["prompt"], ["P"], "P", True),
        ("tdc2023", "default", ["prompt"], ["P"], "P", True),
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
    _publish(hub, config, **{"en" if name == "catqa" else "train": [header, cells]})
    (row,) = load_behaviors(name)
    category = "c" if "c" in cells and name != "alpaca" else ""
    assert (row.text, row.category, row.harmful, row.target) == (text, category, harmful, None)


def test_a_local_file_gives_what_the_hub_gives(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = ["Index", "Goal", "Target", "Behavior", "Category", "Source"]
    rows = [[i, f"Goal {i}", f"Sure {i}", "Title", "Kind", "Original"] for i in range(21)]
    _publish(hub, "behaviors", harmful=[header, *rows], benign=[header, *rows])
    found = load_behaviors("jailbreakbench")
    monkeypatch.setenv(public_sets.LOCAL, str(tmp_path))
    assert load_behaviors("jailbreakbench") == found
    for name in ("harmful", "benign"):
        (hub / f"{name}.csv").rename(tmp_path / f"jailbreakbench_{name}.csv")
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    assert load_behaviors("jailbreakbench") == found


def test_any_data_set_on_the_hub(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["short", "Do x", "yes", "A"], ["title", "Do y", "no", "B"]]
    _publish(hub, "plain", test=[["goal", "Request", "is_bad", "Kind"], *rows])
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, *args, **kw: load(str(hub / path), *args, **kw)
    )
    hub.joinpath("owner").mkdir()
    hub.joinpath("owner/name").symlink_to(hub)
    assert [row.text for row in load_behaviors("owner/name:test")] == ["short", "title"]
    spec = "owner/name:test:config=plain,text=Request,category=Kind,harmful=is_bad"
    assert load_behaviors(spec) == [
        Behavior("name-1", "Do x", None, "A", True),
        Behavior("name-2", "Do y", None, "B", False),
    ]
    benign = load_behaviors("owner/name:test:text=Request,harmful=false[1:]")
    assert [(row.id, row.harmful) for row in benign] == [("name-2", False)]
    with pytest.raises(BadInput, match="text=None names no column; it has goal, Request, is_bad"):
        load_behaviors("owner/name:test:text=None")
    with pytest.raises(BadInput, match="'wrong=Kind' is not one of config="):
        load_behaviors("owner/name:test:wrong=Kind")
    with pytest.raises(BadInput, match=r"'owner/name:other' .* cannot be loaded"):
        load_behaviors("owner/name:other")


def test_a_changed_column_is_named(hub: Path) -> None:
    _publish(hub, "default", train=[["question", "target"], ["Q", "T"]])
    with pytest.raises(BadInput, match="has no column 'prompt' any more, only question, target"):
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
