"""Parts of a run, put together, are the whole of it; what contradicts itself is refused."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from attacks import BadInput, registry
from benchmarks.cli import main
from benchmarks.common.versions import hardware
from benchmarks.harness.merge import merge
from benchmarks.harness.plan import Shard
from benchmarks.harness.runner import run
from benchmarks.inputs.suites import Suite
from benchmarks.report.commands import commands
from benchmarks.report.data import read_results
from benchmarks.storage.store import NOTES, Store, read_judgements, read_notes, read_records
from runs import SEARCH, contents, make_model, make_suite, write_behaviors


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """A search, an attack that fits something, and one without either."""
    folder = tmp_path_factory.mktemp("suite")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.ATTACKS.built_in, "fits", "runs:Fits")
        yield make_suite(
            make_model(folder / "tiny"),
            write_behaviors(folder / "test.jsonl", 3),
            "direct",
            f"gcg:{SEARCH}",
            "fits:steps=1",
            train=str(write_behaviors(folder / "train.jsonl", 2, prefix="train")),
            steps=2,
            harmless=True,
        )


@pytest.fixture(scope="module")
def folders(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The whole run, and its two halves."""
    base = tmp_path_factory.mktemp("runs")
    assert run(suite, base / "whole")
    for part in (1, 2):
        assert run(suite, base / str(part), shard=f"{part}/2")
    return base / "whole", base / "1", base / "2"


def test_the_parts_make_up_the_whole(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    whole, one, two = folders
    mine = [contents(folder)[0].keys() for folder in (one, two)]
    assert all(mine) and not mine[0] & mine[1]
    out = tmp_path / "out"
    assert merge([one, two], out) == len(read_records(whole))
    assert contents(out) == contents(whole)
    names = [sorted(path.name for path in (f / "artefacts").iterdir()) for f in (out, whole)]
    assert names[0] == names[1] and len(names[0]) > 1
    before = (out / "records.jsonl").read_bytes(), (out / "judgements.jsonl").read_bytes()
    assert merge([two, one, whole], out) == 0, "everything is there already"
    assert before == ((out / "records.jsonl").read_bytes(), (out / "judgements.jsonl").read_bytes())


def test_a_merged_run_goes_on(
    suite: Suite, folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    assert main(["merge", str(folders[1]), "--out", str(tmp_path / "out")]) == 0
    assert run(suite, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(folders[0])


def test_a_merged_folder_keeps_what_records_name(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    merge(folders[1:], tmp_path)
    for name in NOTES:
        noted = read_notes(tmp_path / name)
        assert noted and noted == read_notes(folders[0] / name), name
    assert {record.suite for record in read_records(tmp_path)} == {*read_notes(tmp_path / NOTES[2])}


def test_the_commands_on_a_report_run_the_same_cells(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(folders[0], tmp_path / "out"))
    results = read_results([out], None)
    assert {on for _, on, _ in results.made} == {hardware("cpu")}
    before = (out / "records.jsonl").read_bytes()
    for line in results.lines:
        (words,) = commands(line, results.suites)
        assert main([str(out) if word == "DIR" else word for word in shlex.split(words)][1:]) == 0
    assert (out / "records.jsonl").read_bytes() == before, "all of these cells are there already"
    shorter = commands(dataclasses.replace(line, entries=line.entries[:1]), {})
    assert "--behaviors NAME_OR_FILE" in shorter[0], "older records name no set"


def edited(folder: Path, copy: Path, name: str, **values: Any) -> Path:
    """A copy with the first line of a stream changed."""
    shutil.copytree(folder, copy)
    first, *rest = (copy / name).read_text().splitlines(keepends=True)
    line = json.dumps({**json.loads(first), **values}) + "\n"
    (copy / name).write_text("".join([line, *rest]))
    return copy


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("records.jsonl", {"completions": ["other"]}, "differ in completions of direct on test-0"),
        ("records.jsonl", {"flops": 1}, "differ in flops of direct"),
        ("judgements.jsonl", {"label": "refused", "success": False}, "differ in judgements"),
    ],
)
def test_contradictions_are_refused(
    folders: tuple[Path, Path, Path],
    tmp_path: Path,
    name: str,
    values: dict[str, Any],
    reason: str,
) -> None:
    other = edited(folders[1], tmp_path / "other", name, **values)
    with pytest.raises(BadInput, match=reason):
        merge([folders[1], other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_two_machines_may_differ_in_is_no_contradiction(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    slower = {"seconds": {"search": 99.0}, "concurrency": 8, "versions": {"torch": "other"}}
    other = edited(folders[1], tmp_path / "other", "records.jsonl", **slower)
    merge([folders[1], other], tmp_path / "out")
    assert contents(tmp_path / "out") == contents(folders[1])


def test_what_is_finished_supersedes_what_failed(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    failed = {
        "status": "error",
        "error": "no",
        "completions": [],
        "prompts": [],
        "garbled": [],
        "cut": [],
    }
    other = edited(folders[1], tmp_path / "other", "records.jsonl", **failed)
    for at, order in enumerate([(other, folders[1]), (folders[1], other)]):
        merge(order, tmp_path / str(at))
        assert contents(tmp_path / str(at)) == contents(folders[1])
    # Also one that is there already.
    merge([other], tmp_path / "out")
    merge([folders[1]], tmp_path / "out")
    assert contents(tmp_path / "out") == contents(folders[1])


def test_artefacts_that_differ_are_refused(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    other = shutil.copytree(folders[1], tmp_path / "other")
    (path,) = (
        p for p in (other / "artefacts").glob("*.json") if p.with_suffix(".safetensors").is_file()
    )
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "data": {"shape": [9, 9]}}))
    with pytest.raises(BadInput, match="damaged artefact"):
        merge([folders[1], other], tmp_path / "out")
    path.unlink()
    path.symlink_to(folders[1] / "artefacts" / path.name)
    with pytest.raises(BadInput, match="is a link that leads out"):
        merge([folders[1], other], tmp_path / "out")
    with pytest.raises(BadInput, match="is among the folders"):
        merge([folders[1], other], other)


@pytest.mark.parametrize(
    "text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", "1/0", "\u0661/\u0662", "1/ 2"]
)
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="valid: I/N"):
        Shard.parse(text)


def test_more_shards_than_behaviours_leave_some_empty(suite: Suite, tmp_path: Path) -> None:
    plain = dataclasses.replace(suite, attacks=("direct",), harmless=False)
    assert run(plain, tmp_path, shard="9/9")
    assert read_records(tmp_path) == [] and read_judgements(tmp_path) == []
    assert run(plain, tmp_path / "dry", shard="9/9", dry_run=True)
    with Store(tmp_path) as store:
        assert not store.records
