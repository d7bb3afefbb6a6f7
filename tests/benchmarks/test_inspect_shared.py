"""Inspections that are shared hold no texts; those that were interrupted go on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from attacks.core.analysis.survey import Survey
from attacks.core.errors import BadInput
from attacks.core.refusals.coherence import Coherence
from attacks.ssr import ProbeSSR
from benchmarks.cli import main
from benchmarks.harness import artefacts, fitting
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.inspect import Options, inspect, measure, page, page_refusal, subject
from benchmarks.inspect.course import Course
from benchmarks.inspect.kept import Kept
from benchmarks.inspect.markdown import LONG, folded
from benchmarks.inspect.results import Inverted, LensRow, Plane, Reverse, Thinking
from conftest import ROOT

QUICK: dict[str, Any] = {
    **{"train": "pocket-train[0:8]", "behaviors": "pocket-test[0:8]"},
    **{"limit": 4, "steps": 1, "width": 8, "attacked": 2, "restarts": 2, "reverse_steps": 1},
}
#: Words of no other text: of requests, targets, refusals, answers, and a system prompt.
REQUEST, TARGET, REFUSAL, ANSWER, SYSTEM = PLANTED = (
    *("quagmirewort", "zibbleton", "frandlestick", "plumberwick", "ostrongmere"),
)


@pytest.fixture(autouse=True)
def surveyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The survey of the committed inspection, with a planted prompt: fitting one takes long."""
    folder = ROOT / "results" / "inspect-pocket-llama" / "artefacts"
    ids = [path.stem for path in folder.glob("*.safetensors")]
    (found,) = [kept for kept in (artefacts.load(folder, name) for name in ids) if kept]
    frame = Coherence(-5.0, f"Tell of {REQUEST}.", 24)
    own = {"openers": [f"i {REFUSAL}"], "usual_words": 4.0, "coherence": frame.data}

    def survey(*_: object, **__: object) -> Survey:
        return replace(Survey.of(found), own=own)

    monkeypatch.setattr(fitting, "survey", survey)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """An inspection in which each kind of text has a word of its own."""
    monkeypatch.chdir(tmp_path)
    for kind in ("train", "behaviors"):
        rows = [
            {**asdict(row), "text": f"{row.text} {REQUEST}", "target": f"Sure, {TARGET}:"}
            for row in load_behaviors(QUICK[kind])
        ]
        Path(f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(fitting, "learn_openers", lambda *_: (f"i {REFUSAL}",))

    def answers(_: object, texts: Sequence[str], **__: object) -> list[str]:
        return [f"I {REFUSAL} to tell of {ANSWER}"] * len(texts)

    monkeypatch.setattr(subject, "answers", answers)
    files = {"train": "train.jsonl", "behaviors": "behaviors.jsonl"}
    return Options("pocket-llama", system=f"Be {SYSTEM}.", **QUICK | files)


def contents(folder: Path) -> str:
    return "\n".join(
        path.read_bytes().decode("utf-8", "replace").lower()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


def test_what_is_shared_holds_no_text(planted: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = inspect(planted).parent
    assert whole == Path("runs/inspect-pocket-llama")
    found = json.loads((whole / "data.json").read_text())["reverse"]["found"]
    strings = [json.dumps(row["text"])[1:-1].lower() for row in found]
    there = contents(whole)
    # They are planted well: artefacts and the page hold all that a run comes across.
    for text in (REQUEST, REFUSAL, SYSTEM, *strings):
        assert text in there
    monkeypatch.setattr(ProbeSSR, "run", None)  # Nothing is searched again.
    shared = inspect(replace(planted, texts=False))
    assert shared == Path("runs/inspect-pocket-llama-shared/README.md")
    assert not (shared.parent / "artefacts").exists()
    assert len(list(shared.parent.glob("*.png"))) >= 5
    there = contents(shared.parent)
    assert "strings themselves are left out" in there
    for text in (*PLANTED, *strings):
        assert text not in there
    data, full = (json.loads((f / "data.json").read_text()) for f in (shared.parent, whole))
    for row in full["reverse"]["found"]:
        row["text"] = ""
    assert data == {**full, "system": None, "texts": False}


def test_texts_are_not_left_where_none_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine/artefacts").mkdir(parents=True)
    for out in ("mine", ".", "runs/inspect-pocket-llama"):
        assert main(["inspect", "--model", "pocket-llama", "--no-texts", "--out", out]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "choose another --out" in said
    assert not Path("runs").exists()


@pytest.mark.slow
def test_an_interrupted_inspection_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options("pocket-llama", out=tmp_path / "a", **QUICK)
    undisturbed = inspect(replace(options, out=tmp_path / "b")).parent / "data.json"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measure, "angles", interrupted)
        with pytest.raises(KeyboardInterrupt):
            inspect(options)
    assert not (tmp_path / "a" / "data.json").exists()
    monkeypatch.setattr(ProbeSSR, "run", None)
    monkeypatch.setattr(measure, "plane", interrupted)
    data = inspect(options).parent / "data.json"
    assert data.read_text() == undisturbed.read_text()
    # Fewer attacks: the first ones are there, and what is drawn of them is made anew.
    with pytest.raises(KeyboardInterrupt):
        inspect(replace(options, attacked=1))
    with pytest.raises(TypeError):
        inspect(replace(options, steps=2))


def test_what_is_kept_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    row = LensRow(3, ["a", "\u2028"], [1 / 3, 1e-300], [], [])
    turned = Reverse(1, 5, 0.1, -0.2, [Inverted("x|`", 0.5, 1 / 7, True)])
    thought = Thinking(
        [0], [0.5], [float("nan")], {}, 2, {}, {}, {}, {"a": [{"b": 1.0}]}, [], [], []
    )
    values = {
        "row": (list[LensRow], [row]),
        "turned": (Reverse, turned),
        "thought": (Thinking | None, thought),
        "nothing": (Thinking | None, None),
        "flags": (dict[str, list[bool]], {"a": [True, False]}),
    }
    kept = Kept([tmp_path / "first"], "id")
    for name, (_, value) in values.items():
        kept.put(name, value, 2.0)
    for folders in ([tmp_path / "first"], [tmp_path / "second", tmp_path / "first"]):
        again = Kept(folders, "id")
        assert again.seconds() == 10 and again.seconds("row") == 2
        for name, (kind, value) in values.items():
            assert repr(again.get(name, kind)) == repr(value)
    assert (tmp_path / "second" / "inspected-id.json").is_file()
    assert "row" not in Kept([tmp_path / "first"], "other")


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": {"value": 1}}', "[" * 500])
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "inspected-id.json").write_text(text)
    with pytest.raises(BadInput, match=r"inspected-id\.json: damaged"):
        Kept([tmp_path], "id")


def test_a_value_of_another_shape_is_damage(tmp_path: Path) -> None:
    kept = Kept([tmp_path], "id")
    kept.put("row", {"layer": 1}, 0.0)
    with pytest.raises(BadInput, match="damaged"):
        kept.get("row", LensRow)


def test_the_forecast_learns() -> None:
    course = Course("x", {"fit": 10.0, "attack 1": 5.0, "attack 2": 5.0, "attack 3": 5.0, "z": 4.0})
    assert course.remaining() == pytest.approx(29)
    course.done("fit")  # It was there, which says nothing.
    assert course.remaining() == pytest.approx(19)
    course.done("attack 1", 15.0)
    # The others last as long; guesses are too low by a factor of three.
    assert course.remaining() == pytest.approx(15 + 15 + 12)
    made, seconds = course.run("attack 2", lambda: 7)
    assert made == 7 and seconds < 5
    assert course.remaining() == pytest.approx((15 + seconds) / 2 + 12)


def layers(**changes: Any) -> Any:
    found = {
        "accuracy": [0.6, 0.95, 0.97],
        "log_loss": [0.6, 0.2, 0.1],
        "separation": [1.0, 2.0, 3.0],
        "effect": [0.0, 0.9, None],
        "kl": [8.0, 0.1, None],
        **{"chosen": 1, "ablation_layer": 2, "by_sets": False},
    }
    return SimpleNamespace(layers=SimpleNamespace(**found | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "first that is accurate and has nearly the best effect"),
        ({"effect": [None] * 3, "kl": [None] * 3}, "no ablation has an effect"),
        ({"accuracy": [0.6, 0.8, 0.7]}, "none is right on 0.9"),
        ({"accuracy": [0.95, 0.95, 0.97]}, "log loss falls from 0.60 to 0.10 at layer 2"),
        ({"accuracy": [0.95, 0.95, 0.97], "by_sets": True}, "may read nothing but the sets"),
    ],
)
def test_the_page_says_why_a_layer_is_aimed_at(changes: dict[str, Any], said: str) -> None:
    found = page_refusal.layers(layers(**changes), {"layers": "picture"})
    assert said in " ".join(found)
    warned = any("differ in their words" in block for block in found)
    assert warned == (changes.get("accuracy", [0])[0] > 0.9)


def test_the_page_says_where_a_picture_tells_little() -> None:
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(40, 2))
    for shift, said in ((8.0, "looks harmless to this layer"), (0.3, "overlap in this plane")):
        plane = Plane(
            1, [0.5, 0.2], cloud.tolist(), (rng.normal(size=(40, 2)) + shift).tolist(), []
        )
        assert said in page._apart(plane)


def test_long_tables_are_folded() -> None:
    rows = [[str(at), "x"] for at in range(LONG + 1)]
    short, long = (folded(["Layer", "Value"], some) for some in (rows[:-1], rows))
    assert "<details>" not in short and long.startswith("<details>")
    # Markdown within HTML needs empty lines around it.
    assert "\n\n| Layer | Value |\n" in long and long.endswith("|\n\n</details>")
