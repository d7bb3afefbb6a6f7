"""Runs with defences: what they change, what they leave as it is, and what boards say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from attacks.core.behavior import Behavior
from attacks.registry import load
from benchmarks.boards.leaderboard import read_rows, render
from benchmarks.cli import main
from benchmarks.harness.cells import ModelId, Settings, cell_key
from benchmarks.harness.runner import run
from benchmarks.storage.records import DEFENDED
from benchmarks.storage.store import read_records
from runs import SEARCH, contents, make_model, make_suite, write_behaviors

#: With a margin so wide that the penalty always counts.
GUARD = "latent-guard:margin=2.0"
GCG = f"gcg:steps=3,{SEARCH}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("world")
    model = make_model(folder / "model")
    test = write_behaviors(folder / "test.jsonl", 3)
    return model, test, write_behaviors(folder / "train.jsonl", 6, prefix="train")


def suite(world, *attacks: str, **fields: object):  # type: ignore[no-untyped-def]
    model, test, train = world
    told = {"train": str(train), "harmless": True, **fields}
    return make_suite(model, test, *attacks, **told)


@pytest.fixture(scope="module")
def defended(world, tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[no-untyped-def]
    out = tmp_path_factory.mktemp("defended")
    names = ("none", "perplexity", GUARD, "smooth-llm:copies=2", "self-reminder")
    assert run(suite(world, "direct", GCG, defense=names), out)
    return out


def test_keys_without_a_defence_are_what_they_were() -> None:
    key = cell_key(
        ModelId("m", "r", "float32", None),
        load("gcg", steps=3),
        "a",
        Behavior("b", "How?"),
        0,
        Settings(4, 1, "never", "phrases", ("phrases",), None),
        ("no",),
    )
    assert key == "6685b6fc8dc0502e"  # As of the commit before there were defences.


def test_undefended_records_are_those_of_a_run_without_defences(  # type: ignore[no-untyped-def]
    world, defended: Path, tmp_path: Path
) -> None:
    assert run(suite(world, "direct", GCG), tmp_path)
    alone, beside = contents(tmp_path)[0], contents(defended)[0]
    assert {key: beside[key] for key in alone} == alone
    assert all(record["defense"] == "" for record in alone.values())
    for line in (tmp_path / "records.jsonl").read_text().splitlines():
        assert not set(DEFENDED) & set(json.loads(line))


def test_static_attacks_find_what_they_find_without_a_defence(defended: Path) -> None:
    records = [record for record in read_records(defended) if record.attack == "gcg"]
    plain = {r.behavior_id: (r.prompts, r.losses) for r in records if not r.defense}
    static = [record for record in records if record.adaptivity == "static"]
    assert len(static) == 4 * len(plain) == 12
    assert all((r.prompts, r.losses) == plain[r.behavior_id] for r in static)
    adaptive = [r for r in records if r.adaptivity == "adaptive" and r.defense == "latent-guard"]
    assert any(r.losses != plain[r.behavior_id][1] for r in adaptive)


def test_records_say_what_a_defence_did(defended: Path) -> None:
    records = read_records(defended)
    assert len({record.key for record in records}) == len(records)
    for record in records:
        if record.defense in ("perplexity", "latent-guard", "smooth-llm"):
            assert len(record.blocked) == len(record.excess) == len(record.completions) == 1
            (by,), (scores,) = record.blocked, record.excess
            assert set(scores) == {record.defense}
            assert bool(by) == (scores[record.defense] > 0 or (by != "" and "smooth" in by))
            if by:
                assert record.completions[0].startswith("I'm sorry")
    kinds = {(r.attack, r.adaptivity) for r in records if r.defense == "perplexity"}
    assert kinds == {("direct", "static"), ("gcg", "static"), ("gcg", "adaptive")}
    fitted = {r.defense: r.defense_artefact for r in records if r.defense}
    assert (defended / "artefacts" / f"{fitted['latent-guard']}.safetensors").is_file()
    assert fitted["smooth-llm"] == fitted["self-reminder"] == ""


def test_a_second_run_finds_everything_done(world, defended: Path) -> None:  # type: ignore[no-untyped-def]
    before = (defended / "records.jsonl").read_bytes()
    assert run(suite(world, "direct", GCG, defense=(GUARD, "none")), defended)
    assert (defended / "records.jsonl").read_bytes() == before


@pytest.mark.slow
def test_workers_change_nothing(world, defended: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert run(suite(world, "direct", GCG, defense=(GUARD,)), tmp_path, workers=2)
    found = contents(tmp_path)[0]
    assert found == {key: contents(defended)[0][key] for key in found}


def test_boards_tell_defended_rows_apart(defended: Path) -> None:
    rows = read_rows([defended])
    assert {(r.defense, r.adaptivity) for r in rows if r.attack == "direct"} == {
        ("", ""),
        *((name, "static") for name in ("perplexity", "latent-guard", "smooth-llm")),
        ("self-reminder", "static"),
    }
    plain = next(r for r in rows if r.attack == "direct" and not r.defense)
    assert plain.blocked is None and plain.harmless_blocked is None and plain.latency is None
    guarded = next(r for r in rows if r.attack == "direct" and r.defense == "latent-guard")
    records = [
        r for r in read_records(defended) if (r.attack, r.defense) == ("direct", "latent-guard")
    ]
    for harmful, share in ((True, guarded.blocked), (False, guarded.harmless_blocked)):
        own = [bool(r.blocked[0]) for r in records if r.harmful == harmful]
        assert share == pytest.approx(sum(own) / len(own))
    assert guarded.latency and guarded.latency > 0 and guarded.defense_auc is not None
    assert not guarded.static_only
    page = render(rows, "md")
    assert "### Prompt attacks on defended models" in page
    undefended = page.partition("### Prompt attacks on defended models")[0]
    assert "Defence" not in undefended and "latent-guard" not in undefended


def test_a_defence_that_no_attack_knew_of_is_marked(world, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert run(suite(world, GCG, defense=("perplexity",), adaptivity=("static",)), tmp_path)
    rows = read_rows([tmp_path])
    assert [row.static_only for row in rows] == [True]
    assert "perplexity §" in render(rows, "md")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--defense", "nonsense"], "unknown defence 'nonsense'; valid: cliff, erase-and-check"),
        (["--defense", "perplexity"], "defence 'perplexity' needs harmful and harmless training"),
        (["--defense", "smooth-llm:copies=0"], "at least 1"),
        (["--defense", "smooth-llm", "--samples", "2"], "not available"),
    ],
)
def test_bad_defences_are_one_line_and_exit_2(  # type: ignore[no-untyped-def]
    world, tmp_path: Path, capsys, argv: list[str], said: str
) -> None:
    model, test, _ = world
    base = ["run", "--model", str(model), "--attack", "direct", "--behaviors", str(test)]
    assert main([*base, *argv, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_defence_that_cannot_be_fitted_fails_its_own_cells_only(world, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert not run(suite(world, "direct", defense=("none", "latent-guard:layers=[9]")), tmp_path)
    records = read_records(tmp_path)
    assert {(r.defense, r.status) for r in records} == {("", "ok"), ("latent-guard", "error")}
    assert all("no layer 9" in r.error for r in records if r.defense)


def test_the_picture_needs_something_to_draw(defended: Path, world, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    image = tmp_path / "defences.png"
    assert main(["leaderboard", str(defended), "--plot", str(image)]) == 0
    assert image.read_bytes().startswith(b"\x89PNG") and capsys.readouterr().out == ""
    assert run(suite(world, "direct"), tmp_path / "plain")
    assert main(["leaderboard", str(tmp_path / "plain"), "--plot", str(image)]) == 2
    assert "nothing to plot" in capsys.readouterr().err


@pytest.mark.slow
def test_successes_behind_a_defence_are_verified(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "run"
    told = {"train": "pocket-train", "limit": 2, "defense": ('latent-guard:token="last"',)}
    attacks = ("gcg:steps=4,width=32", "refusal-direction")
    pocket = make_suite(Path("pocket-llama"), Path("pocket-test"), *attacks, **told)
    assert run(dataclasses.replace(pocket, max_new_tokens=48), out)
    capsys.readouterr()
    assert main(["verify", str(out), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["attack"] for row in rows} == set(load_names(attacks))
    assert {row["status"] for row in rows} <= {"same", "other"}
    (fitted,) = {record.defense_artefact for record in read_records(out)}
    (out / "artefacts" / f"{fitted}.json").unlink()
    assert main(["verify", str(out), "--format", "json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert {row["status"] for row in rows} == {"unverifiable"}
    assert all("of its defence is not in" in row["reason"] for row in rows)


def load_names(specs: tuple[str, ...]) -> list[str]:
    return [spec.partition(":")[0] for spec in specs]
