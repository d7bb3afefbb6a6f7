"""Results folders of others: nothing outside of them is read or written, nor what has no end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from test_store import fill

from attacks.core.artefact import Artefact
from attacks.core.errors import BadInput
from benchmarks.cli import main
from benchmarks.harness import artefacts
from benchmarks.storage.folders import LARGEST
from benchmarks.storage.store import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A results folder with two records and an artefact."""
    fill(tmp_path / "run", "a", "b")
    fitted = Artefact({"r": torch.arange(3.0)}, {"layer": 1}, 1.0)
    artefacts.save(tmp_path / "run" / "artefacts", "x", fitted)
    (tmp_path / "run" / "checkpoints").mkdir()
    return tmp_path / "run"


@pytest.mark.parametrize(
    "name",
    [
        *("records.jsonl", "judgements.jsonl", "speech.jsonl", ".owner", ".lock", "artefacts"),
        *(
            "checkpoints",
            "artefacts/x.json",
            "artefacts/x.safetensors",
            "checkpoints/k.safetensors",
        ),
    ],
)
def test_links_out_of_a_folder_are_refused(
    folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, away = folder / name, tmp_path / "away"
    if path.exists():
        path.rename(away)
    else:
        away.write_text("precious")
    before = away.read_bytes() if away.is_file() else sorted(away.iterdir())
    path.symlink_to(away)
    assert main(["leaderboard", str(folder)]) == 2
    assert f"'{path}' is a link that leads out" in capsys.readouterr().err
    assert main(["merge", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert main(["judge", str(folder), "--judge", "phrases"]) == 2
    with pytest.raises(BadInput, match="is a link that leads out"):
        Store(folder)
    assert (away.read_bytes() if away.is_file() else sorted(away.iterdir())) == before


def test_links_within_a_folder_and_to_a_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    path = folder / "records.jsonl"
    path.rename(folder / "kept.jsonl")
    path.symlink_to("kept.jsonl")
    (tmp_path / "link").symlink_to(folder)
    for place in (folder, tmp_path / "link"):
        with Store(place) as store:
            assert len(store.records) == 2
        assert artefacts.load(place / "artefacts", "x") is not None


@pytest.mark.parametrize("identity", ["../x", "../artefacts/x", "/etc/x"])
def test_ids_lead_nowhere_else(folder: Path, identity: str) -> None:
    with pytest.raises(BadInput, match="valid: the name of a file"):
        artefacts.load(folder / "artefacts", identity)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("records.jsonl", "leaderboard DIR"),
        ("judgements.jsonl", "leaderboard DIR"),
        ("artefacts/x.json", "pareto DIR"),
        ("artefacts/x.json", "merge DIR --out OUT"),
        ("artefacts/x.safetensors", "merge DIR --out OUT"),
        ("cases.jsonl", "calibrate phrases --cases FILE"),
        ("suite.toml", "run FILE --dry-run"),
        *(
            (f"b{kind}", "run --model pocket-llama --attack direct --behaviors FILE --dry-run")
            for kind in (".jsonl", ".json", ".csv", ".parquet")
        ),
    ],
)
def test_files_that_no_memory_holds_are_refused(
    folder: Path, tmp_path: Path, name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / name
    path.touch()
    os.truncate(path, LARGEST + 1)  # It takes no room.
    names = {"DIR": folder, "FILE": path, "OUT": tmp_path / "out"}
    assert main([str(names.get(word, word)) for word in words.split()]) == 2
    assert f"{path}: {LARGEST + 1} bytes; valid: up to {LARGEST}" in capsys.readouterr().err


def test_what_is_no_file_is_not_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(folder / "b.jsonl")
    words = f"--attack direct --behaviors {folder / 'b.jsonl'} --dry-run"
    assert main(["run", "--model", "pocket-llama", *words.split()]) == 2
    assert "b.jsonl" in capsys.readouterr().err
