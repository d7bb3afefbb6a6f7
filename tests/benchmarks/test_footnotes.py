"""What stands under a board: failed fits, fall-backs, broken answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from test_leaderboard import _record, _run, _write

from benchmarks.boards.leaderboard import render
from benchmarks.judges.context import note_speech
from benchmarks.storage.records import Judgement


def test_a_failed_fit_a_fall_back_and_broken_answers_are_footnotes(tmp_path: Path) -> None:
    failed: dict[str, Any] = {
        "attack": "ablate",
        "attack_hash": "h3",
        "threat_model": "intervention",
    }
    failed |= {"garbled": (True,), "verdict": "failed: 0.50 still | refused"}
    cells = [
        (
            _record(at, **failed),
            ("garbled",),
        )
        for at in range(4)
    ]
    cells += [
        (_record(at, source=source, garbled=(False,), verdict="good: reads | sets"), ("knows",))
        for at, source in enumerate(["own answer, direction", "given target", "given target"])
    ]
    rows = _run(tmp_path, cells)
    text = render(rows, "md")
    assert "| ablate † ‡ |" in text
    assert "† ablate on tiny: the fit failed: 0.50 still \\| refused." in text
    assert "‡ ablate on tiny: 1.00 of the answers are garbled" in text
    assert "gcg on tiny aimed at: own answer, direction (1), given target (2)." in text
    assert "gcg on tiny: reads \\| sets." in text
    by_attack = {row.attack: row for row in rows}
    assert (by_attack["ablate"].asr, by_attack["ablate"].garbled) == (0.0, 1.0)
    assert (by_attack["gcg"].asr, by_attack["gcg"].garbled) == (1.0, 0.0)


def test_successes_that_may_be_unknown_refusals_are_marked(tmp_path: Path) -> None:
    known, unknown = (note_speech(tmp_path, (), None, unknown=share) for share in (0.05, 0.61))
    records = [
        _record(0, speech=unknown),
        _record(0, model="other", speech=known),
    ]
    judged = [
        Judgement(record.key, judge, 0, True, "complied")
        for record in records
        for judge in ("phrases", "reference")
    ]
    text = render(_write(tmp_path, records, judged), "md")
    assert "| tiny | gcg ¶ | phrases |" in text
    assert "| other | gcg | phrases |" in text and "| tiny | gcg | reference |" in text
    assert text.count("¶ tiny: at least 0.61 of its answers to harmful training prompts") == 1


def test_a_board_says_when_answers_were_cut(tmp_path: Path) -> None:
    cells = [(_record(at, cut=(at == 0,), max_new_tokens=24), ("complied",)) for at in range(4)]
    note = "Up to 0.25 of a row's answers reached the limit of 24 tokens and were cut there"
    assert note in render(_run(tmp_path / "cut", cells), "md")
    whole = [(_record(at, cut=(False,), max_new_tokens=24), ("complied",)) for at in range(4)]
    unknown = [(_record(at), ("complied",)) for at in range(4)]
    for name, cells in (("whole", whole), ("unknown", unknown)):
        assert "were cut" not in render(_run(tmp_path / name, cells), "md")


def test_what_a_model_refuses_by_itself_is_not_its_defence_s_fault(tmp_path: Path) -> None:
    """Of four harmless requests the model refuses two, with one defence too, with another all."""
    cells = [(_record(9, attack="direct"), ("refused",))]
    for name, refuses in [("", 2), ("filter", 2), ("wall", 4)]:
        for at in range(4):
            told: dict[str, Any] = {"attack": "direct", "harmful": False, "defense": name}
            told |= {"defense_hash": name, "adaptivity": "static" if name else ""}
            cells.append((_record(at, **told), ("refused" if at < refuses else "knows",)))
    page = render(_run(tmp_path, cells), "md")
    assert "filter on tiny: with it 0.50 of harmless requests are refused or blocked, 0.50" in page
    assert "wall on tiny fails: with it 1.00" in page and "0.50 without it" in page
