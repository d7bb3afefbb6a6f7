"""Model names: shipped ones, folders, Hub ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attacks.core.errors import BadInput
from benchmarks.inputs import models, village


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder, with one model in it."""
    folder = tmp_path / "pocket" / "models" / "pocket-one"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "card.json").write_text(json.dumps({"summary": "A small one."}))
    (tmp_path / "pocket" / "models" / "unfinished").mkdir()
    monkeypatch.setattr(models, "data_dir", lambda: tmp_path)
    monkeypatch.setattr(village, "data_dir", lambda: tmp_path)
    return folder


def test_shipped_models_have_summaries(shipped: Path) -> None:
    assert models.names() == {"pocket-one": "A small one."}
    assert models.resolve("pocket-one") == str(shipped)


def test_folders_and_hub_ids_are_left_as_they_are(shipped: Path) -> None:
    assert models.resolve(str(shipped)) == str(shipped)
    for name in ("gpt2", "owner/name-1.5"):
        assert models.resolve(name) == name


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere", "a/b/c", "nowhere/", ""])
def test_a_path_that_is_not_there_is_refused(shipped: Path, name: str) -> None:
    with pytest.raises(BadInput, match=r"no such folder; shipped models: pocket-one"):
        models.resolve(name)


def test_a_file_is_no_model(shipped: Path) -> None:
    with pytest.raises(BadInput, match="is a file"):
        models.resolve(str(shipped / "config.json"))
