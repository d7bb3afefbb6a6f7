"""Transfer: prompts found on one model, sent to other models and to endpoints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from servers import serving

from attacks.core.model import PlainModel
from attacks.core.prompt import Message, conversation
from benchmarks.boards.leaderboard import read_rows, render
from benchmarks.cli import main
from benchmarks.harness.runner import run
from benchmarks.inputs.suites import Suite
from benchmarks.storage.records import Record
from benchmarks.storage.store import read_judgements, read_records
from benchmarks.transfer import matrices
from conftest import POCKET
from runs import SEARCH, make_model

FROM, TO = "pocket-llama", "pocket-qwen2"
ATTACKS = ("direct", f"gcg:{SEARCH},steps=4", "prefill")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one model."""
    folder = tmp_path_factory.mktemp("found") / "run"
    suite = Suite("test", (FROM,), ATTACKS, "pocket-test", limit=3, attempts=2, max_new_tokens=12)
    assert run(suite, folder)
    return folder


@pytest.fixture(scope="module")
def sent(found: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its prompts sent to another, in a folder of their own."""
    folder = tmp_path_factory.mktemp("sent") / "run"
    assert send(found, folder, TO) == 0
    return folder


def send(found: Path, out: Path, *to: str, attempts: int = 2) -> int:
    told = ["transfer", str(found), "--out", str(out), "--attempts", str(attempts)]
    return main([*told, "--to", *to])


def by_origin(folder: Path) -> dict[str, Record]:
    return {record.origin: record for record in read_records(folder)}


def test_answers_are_those_of_the_target_as_anyone_loads_it(found: Path, sent: Path) -> None:
    model = PlainModel(str(POCKET / TO), name=TO, device="cpu", dtype="float32")
    origins = {record.key: record for record in read_records(found)}
    assert by_origin(sent).keys() == origins.keys()
    for key, record in by_origin(sent).items():
        source = origins[key]
        assert (record.model, record.origin_model) == (TO, FROM)
        assert record.attack_hash == source.attack_hash and record.params == source.params
        assert record.prompts == source.prompts and record.openings == source.openings
        assert record.first_success is None and record.flops == 0 and record.losses == ()
        for at, prompt in enumerate(record.prompts):
            asked = conversation(prompt)
            if record.openings:
                asked = (*asked, Message("assistant", record.openings[at]))
            (answer,) = model.answers([asked], max_new_tokens=12)
            assert record.completions[at] == answer


def test_sending_the_plain_request_is_attacking_the_target_with_nothing(
    sent: Path, tmp_path: Path
) -> None:
    suite = Suite("test", (TO,), ("direct",), "pocket-test", limit=3, max_new_tokens=12)
    assert run(suite, tmp_path)
    own = {record.behavior_id: record.completions[0] for record in read_records(tmp_path)}
    direct = [record for record in read_records(sent) if record.attack == "direct"]
    assert {record.behavior_id: record.completions[0] for record in direct} == own


def test_a_second_call_sends_nothing_and_judges_what_a_kill_has_left(
    found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(found, tmp_path, TO) == 0
    records, judged = (tmp_path / name for name in ("records.jsonl", "judgements.jsonl"))
    before, rows = records.read_bytes(), read_judgements(tmp_path)
    judged.write_text("".join(f"{line}\n" for line in judged.read_text().splitlines()[:3]))
    capsys.readouterr()
    assert send(found, tmp_path, TO) == 0
    assert records.read_bytes() == before
    assert set(map(repr, read_judgements(tmp_path))) == set(map(repr, rows))


def test_boards_keep_transferred_prompts_apart(found: Path, sent: Path) -> None:
    rows = read_rows([found, sent])
    assert {row.origin_model for row in rows if row.model == TO} == {FROM}
    board = render(rows, "md")
    assert "### Prompt attacks\n" in board and "### Prompt attacks, transferred\n" in board
    (gcg,) = [matrix for matrix in matrices([found, sent]) if matrix.attack == "gcg"]
    assert (gcg.sources, gcg.targets) == ([FROM], [FROM, TO])
    outcomes = {
        (row.key, row.completion_index): row.success
        for folder in (found, sent)
        for row in read_judgements(folder)
    }
    for folder, model in ((found, FROM), (sent, TO)):
        keys = [record.key for record in read_records(folder) if record.attack == "gcg"]
        assert gcg.cells[FROM, model].rate == sum(bool(outcomes[key, 0]) for key in keys) / 3
    kept = [
        outcomes[record.key, 0]
        for record in read_records(sent)
        if record.attack == "gcg" and outcomes[record.origin, 0]
    ]
    assert gcg.carried.get((FROM, TO)) == (sum(kept) / len(kept) if kept else None)


@pytest.mark.slow
def test_into_the_folder_itself_and_only_what_strings_can_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attacks = ("direct", "refusal-direction")
    suite = Suite("test", (FROM,), attacks, "pocket-test", "pocket-train", limit=2)
    assert run(suite, tmp_path)
    capsys.readouterr()
    assert main(["transfer", str(tmp_path), "--to", TO, FROM, "--format", "json"]) == 0
    said = capsys.readouterr()
    assert "2 records of refusal-direction" in said.err
    assert {row["attack"] for row in json.loads(said.out)} == {"direct"}
    # Nothing is sent where it was found, and what was sent is no source.
    assert main(["transfer", str(tmp_path), "--to", TO]) == 0
    assert sum(bool(record.origin) for record in read_records(tmp_path)) == 2


def test_endpoints(found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai")
    with serving() as start:
        server = start("I cannot help with that.")
        assert send(found, tmp_path, f"openai:model=far,url={server.url},tries=1") == 0
        asked = [body["messages"] for body in server.asked]
    assert "not sent to openai:model=far" in capsys.readouterr().err
    origins = {record.key: record for record in read_records(found)}
    sent = by_origin(tmp_path)
    assert sent.keys() == {key for key, record in origins.items() if not record.openings}
    texts = [prompt for key in sent for prompt in origins[key].prompts]
    assert sorted(messages[0]["content"] for messages in asked) == sorted(texts)
    assert {record.model for record in sent.values()} == {"far"}
    labels = {row.label for row in read_judgements(tmp_path)}
    assert labels == {"refused"}


def test_an_endpoint_that_fails_on_the_way_is_asked_again(found: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    with serving() as start:
        server = start("Sure.", 500, "Sure.")
        where = f"openai:model=far,url={server.url},tries=1,parallel=1"
        assert send(found, tmp_path, where, attempts=1) == 1
        assert [record.status for record in read_records(tmp_path)].count("error") == 1
        before = len(server.asked)
        assert send(found, tmp_path, where, attempts=1) == 0
        assert len(server.asked) == before + 1
    assert {record.status for record in read_records(tmp_path)} == {"ok"}


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (["--to", "nowhere/there"], "nowhere/there"),
        (["--to", "openai:url=http://x"], "no model given"),
        (["--to", "openai:model=m,speed=3"], "no parameter 'speed'"),
        (["--to", TO, "--attempts", "0"], "--attempts 0"),
        (["--to", TO, "--judge", "nobody"], "unknown judge 'nobody'"),
    ],
)
def test_bad_input_is_one_line(
    found: Path, capsys: pytest.CaptureFixture[str], told: list[str], line: str
) -> None:
    capsys.readouterr()
    before = (found / "records.jsonl").read_bytes()
    assert main(["transfer", str(found), *told]) == 2
    error = capsys.readouterr().err
    assert line in error and error.strip().count("\n") == 0
    assert (found / "records.jsonl").read_bytes() == before


def test_candidates_that_do_not_fit_the_target_cost_their_cell(found: Path, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 28}))
    assert send(found, tmp_path / "out", str(folder)) == 1
    records: list[Any] = read_records(tmp_path / "out")
    assert {record.status for record in records} == {"ok", "error"}
    assert all("longer than the context" in r.error for r in records if r.status == "error")
    assert all(dataclasses.asdict(r)["origin_model"] == FROM for r in records)
