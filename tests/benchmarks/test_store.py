"""A results folder: what is appended is there, once, whatever happened to the last line."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from attacks import BadInput
from benchmarks.storage.records import FirstSuccess, Judgement, Record, Seconds
from benchmarks.storage.store import Store, read_judgements, read_records
from conftest import ROOT


def record(key: str, **fields: object) -> Record:
    """A record with an answer."""
    base = Record(
        key=key,
        model="m",
        attack="a",
        params={"steps": 3},
        attack_hash="h",
        threat_model="prompt",
        behavior_id=key,
        seed=0,
        status="ok",
        prompts=("line\nbreak \u2028 é",),
        completions=("one",),
        losses=(1.5,),
        seconds=Seconds(search=1.25),
        first_success=FirstSuccess(2, 0.5, 7),
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def verdict(key: str, *, success: bool = True) -> Judgement:
    """A judgement of a record's first answer."""
    return Judgement(key, "j", 0, success, "complied")


def fill(folder: Path, *keys: str) -> None:
    """Records with their judgements."""
    with Store(folder) as store:
        for key in keys:
            store.add(record(key), [verdict(key)])


def test_what_is_added_is_read_back(tmp_path: Path) -> None:
    fill(tmp_path / "new" / "out", "a", "b")
    assert read_records(tmp_path / "new" / "out") == [record("a"), record("b")]
    assert read_judgements(tmp_path / "new" / "out") == [verdict("a"), verdict("b")]
    with Store(tmp_path / "new" / "out") as store:
        assert store.records == {"a": record("a"), "b": record("b")} and not store.notes
        assert store.unjudged(record("a"), "j") == [] and store.unjudged(record("a"), "k") == [0]


def test_a_line_torn_at_any_byte_costs_that_line_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # A thousand of them take long.
    fill(tmp_path, "a", "b")
    path = tmp_path / "records.jsonl"
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for end in range(start + 1, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert read_records(tmp_path) == [record("a")]
        with Store(tmp_path) as store:
            assert list(store.records) == ["a"]
            assert len(store.notes) == 1 and "torn" in store.notes[0]
        assert path.read_bytes() == whole[:start]
        assert (tmp_path / "records.jsonl.torn").read_bytes().endswith(whole[start:end] + b"\n")
        assert read_judgements(tmp_path) == [verdict("a")]
    path.write_bytes(whole[:-1])
    with Store(tmp_path) as store:
        assert list(store.records) == ["a", "b"] and not store.notes
    assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [b"{}", b"{", b'{"key": 3}', b"\xff\xfe", b"[1]"])
def test_a_malformed_earlier_line_is_named(tmp_path: Path, line: bytes) -> None:
    fill(tmp_path, "a", "b")
    path = tmp_path / "records.jsonl"
    first, second = path.read_bytes().splitlines()
    path.write_bytes(first + b"\n" + line + b"\n" + second + b"\n")
    for opening in (Store, read_records):
        with pytest.raises(BadInput, match=r"records\.jsonl, line 2: malformed") as caught:
            opening(tmp_path)
        assert "\n" not in str(caught.value)
    path.write_bytes(first + b"\n")
    Store(tmp_path).__exit__()


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    me = rf"process {os.getpid()} on {re.escape(platform.node())}\)"
    with Store(tmp_path):
        with pytest.raises(BadInput, match=rf"in use by another run \({me}"):
            Store(tmp_path)
        for hostile in ("12 \x1b[31mhost", "x", "1 a\nb", "\udcff"):
            (tmp_path / ".owner").write_text(hostile, errors="surrogateescape")
            with pytest.raises(BadInput, match="in use by another run; wait"):
                Store(tmp_path)
    Store(tmp_path).__exit__()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "out" / "records.jsonl").mkdir(parents=True)
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "out"):
        with pytest.raises(BadInput, match="cannot write into"):
            Store(folder)
    with pytest.raises(BadInput, match=r"no records\.jsonl"):
        read_records(tmp_path)


def test_the_last_record_of_a_key_wins(tmp_path: Path) -> None:
    stopped = record("a", status="budget", budget_seconds=1.0)
    with Store(tmp_path) as store:
        store.add(stopped, [verdict("a", success=False)])
        store.add(record("b"), [])
        store.add(record("a"), [verdict("a")])
    assert {row.key: row.status for row in read_records(tmp_path)} == {"a": "ok", "b": "ok"}
    assert read_judgements(tmp_path) == [verdict("a")]


def test_judgements_of_a_superseded_record_do_not_count_for_its_successor(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.add(record("a", status="budget"), [verdict("a", success=False)])
        store.add(record("a"), [])  # killed before its judgements
    with Store(tmp_path) as store:
        assert store.unjudged(record("a"), "j") == [0]


def test_a_failure_is_superseded_by_a_later_record_of_its_cell(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.add(record("x", behavior_id="a", status="error", completions=()), [])
        store.add(record("y", behavior_id="b", status="error", completions=()), [])
        store.add(record("z", behavior_id="a"), [])
    assert [row.key for row in read_records(tmp_path)] == ["y", "z"]


def test_reading_results_needs_no_torch() -> None:
    modules = "benchmarks.storage.store, benchmarks.storage.records"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
