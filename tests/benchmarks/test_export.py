"""Exports: the schemas of other projects, and what may be in a file."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from attacks.core.errors import BadInput
from benchmarks.boards.leaderboard import read_rows
from benchmarks.cli import main
from benchmarks.export import FORMATS, export
from benchmarks.export.attempts import file_name
from benchmarks.storage.store import read_records
from conftest import ROOT

BOARD = ROOT / "results" / "pocket-board"
MODEL = "pocket-llama-hard1"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Jailbreak(Strict):
    """`jailbreakbench.artifact.JailbreakInfo`, version 1.0.0."""

    index: int
    goal: str
    behavior: str
    category: str
    prompt: str | None
    response: str | None
    number_of_queries: int | None
    queries_to_jailbreak: int | None
    prompt_tokens: int | None
    response_tokens: int | None
    jailbroken: bool


class Parameters(Strict):
    """`jailbreakbench.artifact.AttackParameters`, whose date has a default."""

    method: str
    model: str
    attack_type: str
    defense: str | None
    attack_success_rate: float
    total_number_of_jailbreaks: int
    number_of_submitted_prompts: int
    total_number_of_queries: int | None
    total_prompt_tokens: int | None
    total_response_tokens: int | None
    evaluation_llm_provider: str
    method_parameters: dict[str, str | int | float]


class Artifact(Strict):
    parameters: Parameters
    jailbreaks: list[Jailbreak]


@pytest.fixture(scope="module")
def asr() -> dict[str, float | None]:
    return {row.attack: row.asr for row in read_rows([BOARD]) if row.model == MODEL}


def test_artifacts_have_the_published_fields_and_the_boards_figures(
    tmp_path: Path, asr: dict[str, float | None]
) -> None:
    written, notes = export(BOARD, "jailbreakbench", tmp_path)
    assert not notes and len(written) == 21
    for attack, kind in (("direct", "black_box"), ("gcg", "white_box")):
        text = (tmp_path / attack / kind / f"{MODEL}.json").read_text()
        found = Artifact.model_validate_json(text)
        assert found.parameters.attack_success_rate == asr[attack]
        assert found.parameters.total_number_of_jailbreaks == sum(
            row.jailbroken for row in found.jailbreaks
        )
        assert [row.index for row in found.jailbreaks] == list(range(100))
        assert (found.parameters.method, found.parameters.model) == (attack, MODEL)


def test_the_real_package_reads_them(tmp_path: Path) -> None:
    """It knows four models only, so the file is given the name of one."""
    spec = importlib.util.find_spec("jailbreakbench")
    if spec is None:
        pytest.skip("jailbreakbench is not installed")
    # Its __init__ imports clients of many services, of which the schema needs none.
    package = ModuleType("jailbreakbench")
    package.__path__ = list(spec.submodule_search_locations or ())
    before = sys.modules.get("jailbreakbench")
    sys.modules["jailbreakbench"] = package
    try:
        artifact = importlib.import_module("jailbreakbench.artifact")
    finally:
        sys.modules.pop("jailbreakbench")
        if before is not None:
            sys.modules["jailbreakbench"] = before
    for path in export(BOARD, "jailbreakbench", tmp_path)[0]:
        content = json.loads(path.read_text())
        content["parameters"]["model"] = "vicuna-13b-v1.5"
        found = artifact.AttackArtifact.model_validate(content)
        assert len(found.jailbreaks) == 100


def test_harmbench_files_hold_what_was_sent_and_said(
    tmp_path: Path, asr: dict[str, float | None]
) -> None:
    export(BOARD, "harmbench", tmp_path)
    folder = tmp_path / "gcg" / MODEL
    cases = json.loads((folder / "test_cases" / "test_cases.json").read_text())
    completions = json.loads((folder / "completions" / f"{MODEL}.json").read_text())
    results = json.loads((folder / "results" / f"{MODEL}.json").read_text())
    assert list(cases) == list(completions) == list(results)
    records = {
        record.behavior_id: record
        for record in read_records(BOARD)
        if (record.model, record.attack, record.harmful) == (MODEL, "gcg", True)
    }
    for key, record in records.items():
        # Of the prompts that are kept, as many were answered as there are answers.
        assert cases[key] == list(record.prompts[: len(record.completions)])
        assert [row["test_case"] for row in completions[key]] == cases[key]
        assert [row["generation"] for row in completions[key]] == list(record.completions)
    labels = [rows[0]["label"] for rows in results.values()]
    assert set(labels) <= {0, 1} and sum(labels) / len(labels) == asr["gcg"]


def test_interventions_are_no_test_cases(tmp_path: Path) -> None:
    written, notes = export(ROOT / "results" / "pocket-interventions", "harmbench", tmp_path)
    assert {path.relative_to(tmp_path).parts[0] for path in written} <= {"direct"} or written
    assert any("a prompt alone does not reproduce them" in note for note in notes)
    assert not any("refusal-direction" in str(path) for path in written)


def test_model_cards_are_read_by_the_hubs_own_parser(
    tmp_path: Path, asr: dict[str, float | None]
) -> None:
    from huggingface_hub import ModelCard

    export(BOARD, "model-card", tmp_path)
    text = (tmp_path / f"{MODEL}.md").read_text()
    data = ModelCard(text).data
    figures = {
        result.metric_name: result.metric_value
        for result in data.eval_results or ()
        if result.metric_type == "attack_success_rate"
    }
    assert len(figures) == 3
    assert any("gcg" in name and value == asr["gcg"] for name, value in figures.items())
    for record in read_records(BOARD)[:300]:
        assert not record.prompts or record.prompts[0] not in text


def test_inspect_logs_are_read_by_inspect(tmp_path: Path, asr: dict[str, float | None]) -> None:
    log = pytest.importorskip("inspect_ai.log")
    written, _ = export(BOARD, "inspect", tmp_path)
    assert len(written) == 21
    found = log.read_eval_log(str(tmp_path / f"{MODEL}_gcg.eval"))
    assert found.status == "success" and len(found.samples) == 100
    assert found.results.scores[0].metrics["asr"].value == asr["gcg"]
    scored = [sample.scores["reference"].as_int() for sample in found.samples]
    assert sum(scored) / len(scored) == asr["gcg"]
    assert all(sample.output.completion for sample in found.samples)


def test_inspect_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(BadInput, match=r"reroute-bench\[inspect\]"):
        export(BOARD, "inspect", tmp_path)


def test_the_command_says_what_it_wrote_and_warns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for style in FORMATS:
        if style == "inspect":
            continue
        out = tmp_path / style
        assert main(["export", str(BOARD), "--format", style, "--out", str(out)]) == 0
        captured = capsys.readouterr()
        assert all(Path(line).is_file() for line in captured.out.splitlines())
        assert ("share it with care" in captured.err) == (style != "model-card")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([str(BOARD), "--judge", "referense"], "did you mean reference?"),
        (["nowhere"], "records.jsonl"),
        ([str(BOARD), "--out", str(BOARD / "records.jsonl")], "is a file"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if "--out" in flags else ["--out", str(tmp_path)]
    assert main(["export", *flags, *out, "--format", "harmbench"]) == 2
    captured = capsys.readouterr()
    assert reason in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize("name", ["../../etc", "a/b c", "..", "", "x\x00y", "<script>"])
def test_names_from_records_stay_in_the_folder(name: str) -> None:
    found: Any = file_name(name)
    assert found and "/" not in found and not found.startswith(".") and found.isprintable()
