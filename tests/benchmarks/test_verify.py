"""Verifying: successes are generated anew, and what does not reproduce is told apart and listed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from attacks.core.model import Model
from benchmarks.cli import main
from benchmarks.harness.runner import run
from benchmarks.inputs.suites import Suite
from benchmarks.storage.records import Record
from benchmarks.storage.store import read_judgements, read_records
from benchmarks.verify import Condition, claims_of
from conftest import POCKET
from runs import SEARCH

ATTACKS = (f"gcg:{SEARCH},steps=6", "prefill", "refusal-direction", f"gcg:{SEARCH},steps=3+prefill")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose successes are of all kinds that can be verified."""
    folder = tmp_path_factory.mktemp("verify") / "run"
    suite = Suite(
        "test", ("pocket-llama",), ATTACKS, "pocket-test", "pocket-train", limit=3, attempts=2
    )
    assert run(suite, folder)
    kinds = {record.attack for record in read_records(folder) if claimed(folder, record)}
    assert {"gcg", "refusal-direction"} <= kinds
    return folder


def claimed(folder: Path, record: Record) -> list[int]:
    rows = read_judgements(folder)
    return [row.completion_index for row in rows if row.key == record.key and row.success]


def verified(
    folder: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[int, list[dict[str, object]]]:
    capsys.readouterr()
    code = main(["verify", str(folder), "--format", "json", *more])
    return code, json.loads(capsys.readouterr().out)


def changed(ran: Path, folder: Path, change: Callable[[Record], Record]) -> Path:
    """A copy of the run with every record changed."""
    shutil.copytree(ran, folder)
    rows = [dataclasses.asdict(change(record)) for record in read_records(ran)]
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.slow
def test_every_success_of_a_run_reproduces(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, rows = verified(ran, capsys, "--also", "float32:3")
    assert code == 0
    claims = sum(len(claimed(ran, record)) for record in read_records(ran) if record.harmful)
    plain = [row for row in rows if row["batch"] == 1]
    assert len(plain) == claims and len(rows) == 2 * claims
    assert {row["status"] for row in plain} == {"same"}
    assert main(["verify", str(ran)]) == 0
    table = capsys.readouterr().out
    assert f"| all | - | {claims} | {claims} ({claims}) |" in table
    answers = [text for record in read_records(ran) for text in record.completions]
    assert not [text for text in answers if text in table]


@torch.no_grad()
def plain_answers(asked: list[str], condition: Condition) -> list[str]:
    """What transformers alone says to prompts, in batches padded on the left."""
    folder = POCKET / "pocket-llama"
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, condition.dtype))
    said: list[str] = []
    for start in range(0, len(asked), condition.batch):
        turns = [[{"role": "user", "content": text}] for text in asked[start:][: condition.batch]]
        told = tokenizer.apply_chat_template(
            *(turns,),
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        )
        out = hf.generate(**told, max_new_tokens=64, do_sample=False)[
            :, told["input_ids"].shape[1] :
        ]
        said += [text.strip() for text in tokenizer.batch_decode(out, skip_special_tokens=True)]
    return said


@pytest.mark.slow
def test_other_conditions_are_those_of_plain_transformers(
    ran: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ("bfloat16", "bfloat16:2", "float32:3")
    _, rows = verified(ran, capsys, "--limit", "3", "--also", *told)
    claims = claims_of(ran, limit=3)
    assert len(rows) == (1 + len(told)) * len(claims)
    gcg = [claim for claim in claims if claim.record.attack == "gcg"]
    asked = list(dict.fromkeys(claim.record.prompts[claim.index] for claim in gcg))
    assert len(asked) > 1
    for condition in map(Condition.parse, told):
        said = dict(zip(asked, plain_answers(asked, condition), strict=True))
        same = [said[claim.record.prompts[claim.index]] == claim.completion for claim in gcg]
        own = [row for row in rows if (row["dtype"], row["batch"]) == condition]
        assert [row["status"] == "same" for row in own if row["attack"] == "gcg"] == same


def test_edited_weights_are_verified_in_a_plain_model_and_activations_by_hooks(
    ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On this family the edit and the ablation of a direction give the same answers."""
    first = next(row for row in read_records(ran) if row.attack == "refusal-direction")

    def edits(record: Record) -> Record:
        if record.attack != "refusal-direction" or record.key == first.key:
            return record
        more = {"params": {}, "threat_model": "weights"}
        return dataclasses.replace(record, attack="refusal-direction-weights", **more)

    def broken(*args: object, **more: object) -> list[str]:
        raise RuntimeError("hooks are broken")

    folder = changed(ran, tmp_path / "run", edits)
    count = sum(claim.record.threat_model == "weights" for claim in claims_of(folder))
    monkeypatch.setattr(Model, "generate", broken)
    capsys.readouterr()
    assert main(["verify", str(folder)]) == 1
    table = capsys.readouterr().out
    assert f"| refusal-direction-weights | {count} | {count} ({count}) |" in table and count
    assert "| refusal-direction | 1 | - |" in table and "hooks are broken" in table
    assert "Edits of weights are merged" in table and "hooks do so" in table


def test_a_string_that_is_not_the_one_that_succeeded_is_found_out(
    ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {record.behavior_id: record for record in read_records(ran) if record.attack == "gcg"}

    def without_suffix(record: Record) -> Record:
        if record.attack != "gcg":
            return record
        plain = asked[record.behavior_id].prompts[0][:20]
        return dataclasses.replace(record, prompts=(plain,) * len(record.prompts))

    code, rows = verified(changed(ran, tmp_path / "run", without_suffix), capsys)
    gcg = [row for row in rows if row["attack"] == "gcg"]
    assert code == 1 and gcg
    assert "failed" in {row["status"] for row in gcg}
    assert all(row["reason"] for row in gcg if not row["reproduces"])
    assert all(row["reproduces"] for row in rows if row["attack"] != "gcg")


def test_a_claim_without_its_artefact_is_unverifiable_and_says_why(
    ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(ran, folder)
    shutil.rmtree(folder / "artefacts")
    code, rows = verified(folder, capsys)
    lost = [row for row in rows if row["attack"] == "refusal-direction"]
    assert code == 1 and {row["status"] for row in lost} == {"unverifiable"}
    assert all("artefact" in str(row["reason"]) for row in lost)


def test_a_made_up_answer_is_judged_anew(
    ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def embellish(record: Record) -> Record:
        texts = tuple(f"{text} And more." for text in record.completions)
        return dataclasses.replace(record, completions=texts)

    folder = changed(ran, tmp_path / "run", embellish)
    judgements = folder / "judgements.jsonl"
    rows = [json.loads(line) for line in judgements.read_text().splitlines()]
    # As those of records from before judgements named the answer that they judge.
    judgements.write_text("".join(json.dumps({**row, "answer": ""}) + "\n" for row in rows))
    code, found = verified(folder, capsys)
    assert code == 0 and {row["status"] for row in found} == {"other"}


def test_another_checkpoint_is_a_cell_of_transfer(
    ran: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows = verified(ran, capsys, "--model", "pocket-qwen2")
    changes = [row for row in rows if row["attack"] == "refusal-direction"]
    strings = [row for row in rows if row["attack"] == "gcg"]
    assert {row["status"] for row in changes} == {"unverifiable"} and code == 1
    assert {row["model"] for row in rows} == {"pocket-qwen2"}
    assert {row["status"] for row in strings} <= {"failed", "other"}


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (["--also", "bfloat16:0"], "condition 'bfloat16:0'"),
        (["--limit", "0"], "--limit 0"),
        (["--model", "nowhere/there"], "nowhere/there"),
    ],
)
def test_bad_input_is_one_line(
    ran: Path, capsys: pytest.CaptureFixture[str], told: list[str], line: str
) -> None:
    capsys.readouterr()
    assert main(["verify", str(ran), *told]) == 2
    error = capsys.readouterr().err
    assert line in error and error.strip().count("\n") == 0


def test_no_claims(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Suite("t", ("pocket-llama",), ("direct",), "pocket-test", limit=1), tmp_path)
    capsys.readouterr()
    assert main(["verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "No successes are claimed.\n"
