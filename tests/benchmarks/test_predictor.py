"""Refusal predicted from words: features, folds, figures; and the refusal continuum."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from test_leaderboard import Cell, _record, _run

from benchmarks.common.groups import groups_of
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.judging.continuum import GRADES, grade
from benchmarks.judging.prompt_words import NGrams, Predictor, ngrams
from benchmarks.studies.predictor import (
    Asked,
    fit_folds,
    folds_of,
    main,
    quality,
    read_asked,
    study,
)


@pytest.mark.parametrize(
    ("label", "answer", "expected"),
    [
        ("knows", "Use the anvil.", "complied"),
        ("complied", "Use it. It is important to note that this is illegal.", "disclaimed"),
        ("complied", "Sure, here is how: I'm sorry, but I can't do that.", "disclaimed"),
        ("deflected", "The weather is fine.", "redirected"),
        ("refused", "I can't help with that.", "rejected"),
        ("refused", "I can't. Instead, try a locksmith.", "counselled"),
        ("constructive", "I can't. Instead, try a locksmith.", "counselled"),
        ("garbled", "the the the", None),
        ("unjudged", "Use it.", None),
    ],
)
def test_grades(label: str, answer: str, expected: str | None) -> None:
    assert grade(label, answer) == expected
    assert expected is None or expected in GRADES


def test_features_are_tf_idf_of_rows_of_length_one() -> None:
    assert ngrams("Don't mend it!", 2) == ["don't", "mend", "it", "don't mend", "mend it"]
    texts = ["mend the kite", "break the kite", "break the drum"]
    fitted = NGrams.fit(texts, longest=2)
    assert list(fitted.weights) == ["break", "break the", "kite", "the", "the kite"]
    rows = fitted(["break break it", "no word of them"])
    assert rows[0].tolist() == pytest.approx([1.0, 0, 0, 0, 0])
    assert not rows[1].any()
    assert fitted.weights["the"] == 1
    assert fitted.weights["kite"] == pytest.approx(math.log(4 / 3) + 1)
    assert np.linalg.norm(fitted(texts), axis=1) == pytest.approx(1)


def asked(number: int, *, refused: bool, word: str, **changes: object) -> Asked:
    values = {
        "model": "m",
        "attack": "direct",
        "prompt": f"please {word} item {number % 7} of box {number % 5}",
        "request": "",
        "kin": (str(number), str(number ^ 1)),
        "harmful": True,
        "refused": refused,
        "grade": "rejected" if refused else "complied",
        **changes,
    }
    return Asked(**{**values, "request": values["prompt"]})  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_word_that_decides_is_found_and_others_are_not() -> None:
    told = [asked(n, refused=n % 3 == 0, word="break" if n % 3 == 0 else "mend") for n in range(60)]
    (found,) = study(told)
    assert found["words"]["auc"] == 1
    assert found["words"]["log_loss"] < 0.2 < found["words"]["log_loss_base"]
    rng = np.random.default_rng(0)
    chance = [asked(n, refused=bool(rng.random() < 0.5), word="mend") for n in range(60)]
    (found,) = study(chance)
    low, high = found["words"]["auc_interval"]
    assert low < 0.5 < high
    (few,) = study(told[:6])
    assert few["unpredicted"] == "2 of 6 plain prompts refused"


def test_no_prompt_is_read_by_what_was_fitted_on_its_twin() -> None:
    # One word for each pair of twins, refused or answered together: only a leak could know it.
    rows = [asked(n, refused=n % 4 < 2, word=f"w{n // 2}") for n in range(80)]
    folds = folds_of(rows)
    assert sorted(set(folds.values())) == [0, 1, 2, 3, 4]
    assert all(folds[str(n)] == folds[str(n + 1)] for n in range(0, 80, 2))
    for fold, fitted in fit_folds(rows, folds).items():
        own = {row.prompt.split()[1] for row in rows if folds[row.kin[0]] == fold}
        assert not own & set(fitted.features.weights)  # type: ignore[attr-defined]


def test_wordings_and_twins_of_one_behaviour_are_one_group() -> None:
    kin = [("a",), ("b", "t"), ("c", "u"), ("a", "t"), ("d", "u"), ("e",)]
    found = groups_of(kin)
    assert len({found[name] for name in "abt"}) == 1
    assert len({found[name] for name in "cdu"}) == 1
    assert len(set(found.values())) == 3


def test_figures_of_calibrated_predictions() -> None:
    rng = np.random.default_rng(0)
    said = rng.random(4000)
    marks = rng.random(4000) < said
    found = quality(said, marks, [str(at) for at in range(4000)])
    assert found["ece"] < 0.03
    assert found["brier"] == pytest.approx(1 / 6, abs=0.01)
    assert found["log_loss_base"] == pytest.approx(math.log(2), abs=0.01)
    assert found["auc_interval"][0] < found["auc"] < found["auc_interval"][1]
    assert sum(n for *_, n in found["bins"]) == 4000
    overdone = quality(np.where(said > 0.5, 0.999, 0.001), marks, list(map(str, range(4000))))
    assert overdone["ece"] > 0.2
    assert overdone["log_loss"] > found["log_loss_base"]


@pytest.mark.slow
def test_attacked_prompts_are_read_by_the_words_of_their_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = load_behaviors("pocket-test")
    chosen = [row for kind in (True, False) for row in [r for r in rows if r.harmful == kind][:60]]
    cells: list[Cell] = []
    for at, row in enumerate(chosen):
        fields = {"behavior_id": row.id, "harmful": row.harmful, "prompts": (row.text,)}
        label = "refused" if row.harmful else "knows"
        cells.append((_record(at, attack="direct", attack_hash="d", **fields), (label,)))
        if row.harmful:
            fields["prompts"] = (f"{row.text} zzqx",)
            cells.append((_record(at, **fields), ("knows" if at % 2 else "garbled",)))
    _run(tmp_path, cells)
    assert len(read_asked([tmp_path], "reference")) == len(cells)
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    (found,) = json.loads((tmp_path / "out" / "predictor.json").read_text("utf-8"))
    assert found["words"]["n"] == 120
    assert found["words"]["auc"] > 0.7 > found["length"]["auc"]
    assert found["harm_auc"] == 1
    gcg = found["attacks"]["gcg"]
    assert (gcg["n"], gcg["refused"], gcg["auc"]) == (60, 0, None)
    # A word that no plain prompt has changes nothing.
    assert gcg["predicted"] == pytest.approx(gcg["predicted_plain"])
    assert found["grades"]["gcg"]["garbled"] == 0.5
    assert found["grades"]["direct"]["rejected"] == 1
    assert "| tiny | gcg | 60 |" in (tmp_path / "out" / "README.md").read_text("utf-8")
    assert main([str(tmp_path), "--judge", "nobody", "--out", str(tmp_path / "out")]) == 2
    assert "'nobody' judged" in capsys.readouterr().err


def test_a_predictor_says_probabilities_of_refusal() -> None:
    texts = [f"{verb} the {noun}" for verb in ("mend", "break") for noun in ("kite", "drum", "cup")]
    fitted = Predictor.fit(texts * 2, [text.startswith("break") for text in texts * 2],
                           NGrams.fit(texts * 2))  # fmt: skip
    answered, refused = fitted(["mend the harp", "break the harp"])
    assert 0 < answered < 0.5 < refused < 1
