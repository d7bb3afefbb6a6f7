"""Replay: other people's prompts find their behaviours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from attacks import Behavior, load
from attacks.core.errors import BadInput
from benchmarks.cli import main
from benchmarks.export import export
from benchmarks.storage.store import read_judgements, read_records
from conftest import ROOT, pocket

BOARD = ROOT / "results" / "pocket-board"
MODEL = "pocket-llama-hard1"


def sent(path: Path, behavior: Behavior) -> list[str]:
    model, rng = pocket("pocket-llama"), torch.Generator().manual_seed(0)
    attack = load("replay", file=str(path))
    artefact = attack.prepare(model, (), rng=rng)
    (step,) = attack.run(model, behavior, artefact=artefact, rng=rng)
    return [turns[-1].content for turns in step.prompts]


def jailbreak(**fields: object) -> dict[str, object]:
    return {"index": 0, "goal": "g", "behavior": "Title", "prompt": "p", **fields}


def test_test_cases_are_matched_by_id(tmp_path: Path, behavior: Behavior) -> None:
    path = tmp_path / "test_cases.json"
    path.write_text(json.dumps({behavior.id: ["one", "two"], "other": ["three"]}))
    assert sent(path, behavior) == ["one", "two"]


def test_artifacts_are_matched_by_text_or_id(tmp_path: Path, behavior: Behavior) -> None:
    path = tmp_path / "artifact.json"
    rows = [jailbreak(goal=behavior.text.upper(), prompt="mine"), jailbreak(prompt="not mine")]
    path.write_text(json.dumps({"parameters": {}, "jailbreaks": rows}))
    assert sent(path, behavior) == ["mine"]
    rows.append(jailbreak(goal="else", behavior=behavior.id, prompt="by id"))
    path.write_text(json.dumps({"parameters": {}, "jailbreaks": rows}))
    assert sent(path, behavior) == ["by id"]


def test_what_was_not_submitted_is_an_error(tmp_path: Path, behavior: Behavior) -> None:
    path = tmp_path / "artifact.json"
    rows = [jailbreak(goal=behavior.text, prompt=None)]
    path.write_text(json.dumps({"parameters": {}, "jailbreaks": rows}))
    with pytest.raises(BadInput, match="no prompt for behaviour"):
        sent(path, behavior)


@pytest.mark.parametrize(
    "content", ["", "[]", "3", '{"a": "b"}', '{"a": [1]}', '{"jailbreaks": [1]}', "\ud83d"]
)
def test_other_files_are_refused(content: str, tmp_path: Path, behavior: Behavior) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(BadInput, match="replay: "):
        sent(path, behavior)
    with pytest.raises(BadInput, match="cannot be read"):
        sent(tmp_path / "none.json", behavior)


def test_a_file_that_has_changed_is_refused(tmp_path: Path, behavior: Behavior) -> None:
    path = tmp_path / "test_cases.json"
    path.write_text(json.dumps({behavior.id: ["one"]}))
    model, rng = pocket("pocket-llama"), torch.Generator().manual_seed(0)
    attack = load("replay", file=str(path))
    artefact = attack.prepare(model, (), rng=rng)
    path.write_text(json.dumps({behavior.id: ["another"]}))
    with pytest.raises(BadInput, match="has changed since"):
        list(attack.run(model, behavior, artefact=artefact, rng=rng))


@pytest.mark.parametrize("spec", ["replay", "replay:file=''", "replay:file=' '"])
def test_without_a_file_it_is_refused(
    spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", MODEL, "--attack", spec, "--behaviors", "pocket-test"]
    assert main(["run", *flags, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "file is missing" in said and "replay" in said and "HarmBench test cases" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("style", ["jailbreakbench", "harmbench"])
def test_what_is_exported_and_replayed_does_the_same(style: str, tmp_path: Path) -> None:
    """Prompts of a committed run, through the other project's file, and judged once more."""
    written, _ = export(BOARD, style, tmp_path / "files")  # type: ignore[arg-type]
    wanted = {"jailbreakbench": "white_box", "harmbench": "test_cases"}[style]
    (path,) = [
        path
        for path in written
        if "gcg" in path.parts
        and wanted in path.parts
        and (path.stem == MODEL or MODEL in path.parts)
    ]
    out = tmp_path / "out"
    attack = f"replay:file='{path}'"
    flags = ["--model", MODEL, "--attack", attack, "--behaviors", "pocket-test", "--limit", "8"]
    assert main(["run", *flags, "--out", str(out)]) == 0

    def outcomes(folder: Path, name: str) -> dict[str, tuple[str, bool | None]]:
        judged = {
            row.key: row.success
            for row in read_judgements(folder)
            if row.judge == "reference" and row.completion_index == 0
        }
        return {
            row.behavior_id: (row.prompts[0], judged[row.key])
            for row in read_records(folder)
            if (row.attack, row.model) == (name, MODEL)
        }  # fmt: skip

    again, first = outcomes(out, "replay"), outcomes(BOARD, "gcg")
    assert len(again) == 8
    assert again == {key: first[key] for key in again}
