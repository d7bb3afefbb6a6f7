"""Hostile files: one line and exit code 2 or a result, never a traceback or an escape.

`make faults` tries 10,000 inputs, the suite of tests fewer.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import dumped, edits, mutated, often, some_text, told, values
from hypothesis import given
from hypothesis import strategies as st

from attacks.core.artefact import Artefact
from attacks.core.errors import BadInput
from benchmarks.harness import artefacts
from benchmarks.harness.checkpoints import Checkpoint, encode
from benchmarks.harness.checkpoints import load as load_checkpoint
from benchmarks.harness.runner import run
from benchmarks.inputs.suites import Suite

SUITE = {
    "models": ["pocket-llama"],
    "attacks": ["direct"],
    "behaviors": "pocket-test",
    "limit": 1,
    "max_new_tokens": 4,
}


def as_toml(fields: dict[str, Any]) -> str:
    """As far as JSON is TOML; what is not, is malformed TOML and so an input as well."""
    return "".join(f"{json.dumps(key)} = {dumped(value)}\n" for key, value in fields.items())


@often
@given(
    changes=st.dictionaries(
        st.one_of(
            st.sampled_from([*SUITE, "train", "judges", "seeds", "steps", "date"]), some_text
        ),
        values,
        max_size=3,
    )
)
def test_suites(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "suite.toml"
    path.write_bytes(as_toml({**SUITE, **changes}).encode("utf-8", "surrogatepass"))
    told("run", str(path), "--dry-run", "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


ROW = {
    "id": "a",
    "text": "Paint the harp.",
    "target": "Sure",
    "category": "music",
    "harmful": True,
    "twin": None,
    "reference": None,
}


@often
@given(
    rows=st.lists(
        st.one_of(
            values,
            st.dictionaries(
                st.one_of(st.sampled_from([*ROW, "goal", "decoys"]), some_text), values, max_size=4
            ).map(lambda changes: {**ROW, **changes}),
        ),
        max_size=3,
    ),
    kind=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet"]),
    noise=edits,
    noisy=st.booleans(),
)
def test_behaviour_files(
    tmp_path: Path, rows: list[Any], kind: str, noise: list[tuple[float, int]], noisy: bool
) -> None:
    text = "\n".join(map(dumped, rows)) if kind == ".jsonl" else dumped(rows)
    if kind in (".csv", ".tsv"):
        flat = [row if isinstance(row, dict) else {"text": str(row)} for row in rows]
        file = io.StringIO()
        names = list(dict.fromkeys(str(key) for row in flat for key in row)) or ["text"]
        writer = csv.DictWriter(file, names, delimiter="\t" if kind == ".tsv" else ",")
        with contextlib.suppress(csv.Error):
            writer.writeheader()
            writer.writerows([{str(key): str(value) for key, value in row.items()} for row in flat])
        text = file.getvalue()
    data = text.encode("utf-8", "surrogatepass")
    path = tmp_path / f"rows{kind}"
    path.write_bytes(mutated(data, noise) if noisy else data)
    flags = ["--model", "pocket-llama", "--attack", "direct", "--behaviors", str(path)]
    told("run", *flags, "--dry-run", "--out", str(tmp_path / "out"))


@often
@given(
    name=st.sampled_from(["gcg", "ssr-probe", "refusal-direction", "gcg+prefill", "nobody", ""]),
    params=st.dictionaries(
        st.one_of(st.sampled_from(["steps", "width", "layers", "layout", "answer"]), some_text),
        values,
        max_size=3,
    ),
    rest=some_text,
)
def test_attack_specs(tmp_path: Path, name: str, params: dict[str, Any], rest: str) -> None:
    spec = f"{name}:{','.join(f'{key}={dumped(value)}' for key, value in params.items())}{rest}"
    sets = ["--behaviors", "pocket-test", "--train", "pocket-train", "--limit", "1"]
    told("run", "--model", "pocket-llama", "--attack", spec, *sets, "--dry-run")


@often
@given(
    judge=st.sampled_from(["guard", "rubric", "vote", "classifier", "phrases", "nobody"]),
    params=some_text,
    rows=st.lists(values, max_size=3),
)
def test_judges_and_cases(tmp_path: Path, judge: str, params: str, rows: list[Any]) -> None:
    case = {"behavior": "b", "response": "r", "expect_refusal": False, "expect_harmful": True}
    path = tmp_path / "cases.jsonl"
    lines = [{**case, **row} if isinstance(row, dict) else row for row in rows]
    path.write_bytes("\n".join(map(dumped, lines)).encode("utf-8", "surrogatepass"))
    told("calibrate", f"{judge}:{params}" if params else judge, "--cases", str(path))
    told("calibrate", "phrases", "--cases", str(path))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, whose files are damaged in copies."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    suite = Suite("t", ("pocket-llama",), ("direct", "prefill"), "pocket-test", limit=2)
    assert run(suite, folder)
    return folder


READERS: tuple[tuple[str, ...], ...] = (
    ("leaderboard", "DIR"),
    ("leaderboard", "DIR", "--format", "csv"),
    ("leaderboard", "DIR", "--format", "json"),
    ("compare", "DIR", "--base", "direct"),
    ("agreement", "DIR"),
    ("transfer", "DIR"),
    ("judge", "DIR", "--judge", "phrases"),
    ("label", "DIR"),
    ("report", "DIR", "--with-completions", "--out", "OUT"),
    ("merge", "DIR", "--out", "OUT"),
    *(
        ("export", "DIR", "--format", kind, "--out", "OUT")
        for kind in ("jailbreakbench", "harmbench", "model-card")
    ),
)


def read_with(reader: tuple[str, ...], folder: Path) -> tuple[int, str]:
    """What a command makes of a results folder, in which it leaves everything else alone."""
    out = folder.parent / "place" / "out"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    names = {"DIR": str(folder), "OUT": str(out)}
    code, shown = told(*(names.get(word, word) for word in reader))
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, "place"}
    assert not {path.name for path in out.parent.iterdir()} - {out.name}
    if out.is_file():
        assert "<script>alert" not in out.read_text("utf-8")
    return code, shown


@often
@given(
    changes=st.dictionaries(
        st.sampled_from(
            [
                *("model", "attack", "params", "threat_model", "behavior_id", "status", "error"),
                *("verdict", "source", "system", "origin_model", "revision", "dtype", "stop"),
                *("prompts", "completions", "seconds", "losses", "garbled", "versions", "key"),
            ]
        ),
        st.one_of(values, some_text, st.lists(some_text, min_size=1, max_size=2)),
        min_size=1,
        max_size=3,
    ),
    reader=st.sampled_from(READERS),
)
def test_records(
    results: Path, tmp_path: Path, changes: dict[str, Any], reader: tuple[str, ...]
) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    folder = Path(shutil.copytree(results, tmp_path / "run"))
    path = folder / "records.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0] = {**rows[0], **changes}
    path.write_bytes("".join(f"{dumped(row)}\n" for row in rows).encode("utf-8", "surrogatepass"))
    code, out = read_with(reader, folder)
    if code == 0 and reader[0] in ("leaderboard", "compare") and reader[-1] != "json":
        assert "<script" not in out
    if code == 0 and (reader[-1] == "csv" or reader[0] == "label"):
        for row in csv.reader(io.StringIO(out)):
            for cell in row:
                assert not cell.startswith(("=", "@", "\t")), cell
                assert not cell.startswith(("+", "-")) or re.fullmatch(r"[-+0-9.einf]+", cell)


@often
@given(
    name=st.sampled_from(["records.jsonl", "judgements.jsonl", "behaviors.jsonl", "speech.jsonl"]),
    noise=edits,
    reader=st.sampled_from(READERS),
)
def test_streams(
    results: Path,
    tmp_path: Path,
    name: str,
    noise: list[tuple[float, int]],
    reader: tuple[str, ...],
) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    folder = Path(shutil.copytree(results, tmp_path / "run"))
    (folder / name).write_bytes(mutated((folder / name).read_bytes(), noise))
    read_with(reader, folder)


@often
@given(
    depth=st.sampled_from([101, 400, 970, 1200, 100_000]),
    brackets=st.sampled_from(["[]", '{"a":}', '{"params":}']),
    closed=st.booleans(),
    where=st.sampled_from(["suite", "jsonl", "json", "cases", "spec", "records", "artefact"]),
)
def test_deep_nesting(tmp_path: Path, depth: int, brackets: str, closed: bool, where: str) -> None:
    inmost = "" if brackets == "[]" else "1"
    value = brackets[:-1] * depth + inmost + brackets[-1] * depth * closed
    toml = value.replace(":", "=") + "\n"
    path = tmp_path / f"input.{where}"
    path.write_text(f"a = {toml}" if where == "suite" else f"{value}\n" * (1 + (where != "json")))
    adhoc = ("run", "--model", "pocket-llama", "--dry-run", "--attack")
    spec = f"gcg:steps={toml.strip()}" if where == "spec" else "direct"
    (tmp_path / "run").mkdir(exist_ok=True)
    if where == "records":
        path.replace(tmp_path / "run" / "records.jsonl")
    commands = {
        "suite": ("run", str(path), "--dry-run"),
        "cases": ("calibrate", "phrases", "--cases", str(path)),
        "spec": (*adhoc, spec, "--behaviors", "pocket-test"),
        "records": ("leaderboard", str(tmp_path / "run")),
    }
    if where == "artefact":
        path.rename(tmp_path / "a.json")
        with pytest.raises(BadInput, match="damaged"):
            artefacts.load(tmp_path, "a")
    else:
        given = commands.get(where, (*adhoc, spec, "--behaviors", str(path)))
        assert told(*given)[0] == 2


@often
@given(noise=edits, which=st.sampled_from(["json", "safetensors"]))
def test_artefacts(tmp_path: Path, noise: list[tuple[float, int]], which: str) -> None:
    whole = Artefact({"basis": torch.arange(6.0).reshape(2, 3)}, {"layer": 3, "note": "x"}, 1.5)
    artefacts.save(tmp_path, "a", whole)
    path = tmp_path / f"a.{which}"
    path.write_bytes(mutated(path.read_bytes(), noise))
    try:
        found = artefacts.load(tmp_path, "a")
    except BadInput as error:
        assert "damaged" in str(error)
    else:
        # What is loaded is what was saved; only its cost is under no hash.
        assert found is None or found.hash == whole.hash


@often
@given(noise=edits)
def test_checkpoints(tmp_path: Path, noise: list[tuple[float, int]]) -> None:
    whole = Checkpoint({"ids": torch.arange(5), "step": 3}, {"losses": [1.0, 0.5]})
    path = tmp_path / "c.safetensors"
    path.write_bytes(mutated(encode(whole), noise))
    found = load_checkpoint(path, torch.device("cpu"))
    if found is not None:
        assert torch.equal(found.state["ids"], whole.state["ids"])  # type: ignore[arg-type]
        assert found.state["step"] == 3 and found.data == whole.data
