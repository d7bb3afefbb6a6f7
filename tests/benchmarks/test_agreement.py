"""Where judges disagree; people among them, by sheets that hide what was done."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from test_judging import ASKED, record

from benchmarks.boards.agreement import agreement, as_markdown, kappa
from benchmarks.cli import main
from benchmarks.judges.context import note_behaviors
from benchmarks.judging.labels import sheet_text
from benchmarks.storage.records import Judgement
from benchmarks.storage.store import Store, read_judgements

HOSTILE = '=HYPERLINK("http://x")\x1b[31m\x07\u202e| <script>`'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two attacks on four behaviours, which two judges order in opposite ways."""
    with Store(tmp_path / "out") as store:
        note_behaviors(tmp_path / "out", ASKED)
        for attack, by_one, by_other in (("good", 3, 1), ("bad", 1, 2)):
            for at in range(4):
                key = f"{attack}{at}"
                one = record(at, key=key, attack=attack, attack_hash=attack, prompts=("magic",))
                verdicts = [
                    Judgement(key, name, 0, at < yes, "complied" if at < yes else "deflected")
                    for name, yes in (("one", by_one), ("other", by_other))
                ]
                store.add(one, verdicts)
    return tmp_path / "out"


def test_kappa_by_hand() -> None:
    said = [("a", True, True)] * 20 + [("b", True, False)] * 5
    said += [("c", False, True)] * 10 + [("d", False, False)] * 15
    found = kappa(said)
    # Cohen's textbook table: 0.70 observed, 0.50 expected.
    assert found and found[0] == pytest.approx(0.4) and found[1] <= 0.4 <= found[2]
    assert kappa([("a", True, True)] * 3) is None and kappa([]) is None
    rng = np.random.default_rng(0)
    chance = kappa([(str(at), *map(bool, rng.integers(2, size=2))) for at in range(2000)])
    assert chance and chance[1] < 0 < chance[2]


def test_ranks_flip(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = agreement([folder])
    (pair,) = found.pairs
    assert (pair.n, pair.same) == (8, 5 / 8)
    assert (pair.only_first, pair.only_second) == (2, 1)
    assert (pair.compared, pair.flipped) == (1, 1) and 0.2 < (pair.flip_chance or 0) < 1
    ranks = {row.attack: dict(row.rank) for row in found.rankings}
    assert ranks == {"good": {"one": 1, "other": 2}, "bad": {"one": 2, "other": 1}}
    assert {row.behavior_id for row in found.disputes} == {"b1", "b2"}
    shown = as_markdown(found)
    assert "1 of 1" in shown and "magic" not in shown and "wax" not in shown
    assert main(["agreement", str(folder), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"][0]["flipped"] == 1


def test_one_judge_is_not_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store(tmp_path) as store:
        store.add(record(0), [Judgement("k0", "one", 0, True, "complied")])
    assert main(["agreement", str(tmp_path)]) == 2
    assert "judges in these folders: one; two are needed" in capsys.readouterr().err


def _fill(sheet: Path, say: object, separator: str = ",") -> None:
    rows = list(csv.DictReader(io.StringIO(sheet.read_text("utf-8"))))
    with sheet.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=separator)
        writer.writeheader()
        for at, row in enumerate(rows):
            writer.writerow({**row, "success": say(at, row)})  # type: ignore[operator]


def test_a_sheet_goes_out_blinded_and_comes_back(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store(folder) as store:
        store.add(record(0, key="hostile", completions=(HOSTILE,)), [])
    sheet = folder.parent / "sheet.csv"
    assert main(["label", str(folder), "--out", str(sheet)]) == 0
    text = sheet.read_text("utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    # Two answers to each of four requests, the same under both attacks, and the hostile one.
    assert len(rows) == 9 and list(rows[0]) == ["id", "behaviour", "answer", "success"]
    assert not any(word in text for word in ("good", "bad", "magic", "\x1b", "\x07", "\u202e"))
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())

    _fill(sheet, lambda at, row: "yes" if "wax" in row["answer"] else "no", ";")
    assert main(["label", str(folder), "--read", str(sheet), "--rater", "ann"]) == 0
    people = [row for row in read_judgements(folder) if row.judge == "human:ann"]
    assert len(people) == 17
    assert {(row.success, row.completion_index) for row in people if row.key != "hostile"} == {
        (True, 0),
        (False, 1),
    }
    capsys.readouterr()
    main(["label", str(folder), "--out", str(sheet)])
    _fill(sheet, lambda at, row: ["yes", "no", "?", ""][at % 4])
    assert main(["label", str(folder), "--read", str(sheet), "--rater", "bob"]) == 0
    assert "with human:ann:" in capsys.readouterr().out
    main(["leaderboard", str(folder), "--format", "json"])
    boards = {(row["attack"], row["judge"]): row for row in json.loads(capsys.readouterr().out)}
    # Four labelled behaviours leave next to nothing to tell, and the board says so.
    assert boards["good", "one"]["correction"] == "labels (undetermined)"
    assert boards["good", "one"]["asr_corrected"] == pytest.approx(1.0, abs=0.3)
    assert boards["good", "human:ann"]["correction"] == ""


def test_a_sample_is_drawn_by_seed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = []
    for seed in ("0", "0", "1"):
        assert main(["label", str(folder), "--sample", "3", "--seed", seed]) == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (lambda at, row: "maybe", "row 1: success 'maybe' is not one of yes, no, ?"),
        (lambda at, row: "", "no row says yes, no or ?"),
    ],
)
def test_bad_sheets_are_one_line_and_change_nothing(
    folder: Path, fill: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = folder.parent / "sheet.csv"
    main(["label", str(folder), "--out", str(sheet)])
    _fill(sheet, fill)
    before = (folder / "judgements.jsonl").read_bytes()
    assert main(["label", str(folder), "--read", str(sheet), "--rater", "ann"]) == 2
    assert message in capsys.readouterr().err
    assert main(["label", str(folder), "--read", str(sheet)]) == 2
    assert main(["label", str(folder), "--read", str(sheet), "--rater", "a b"]) == 2
    assert (folder / "judgements.jsonl").read_bytes() == before


def test_cells_of_sheets() -> None:
    assert sheet_text("a\nb") == "a\nb"
    assert sheet_text("-1+2") == "'-1+2"
    assert sheet_text("\x00\u202e") == "\\x00\\u202e"
