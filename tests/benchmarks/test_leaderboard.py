"""Leaderboards of records written here: figures, grouping, escaping."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from attacks.core.errors import BadInput
from benchmarks.boards.leaderboard import END, FORMATS, START, read_rows, render, update_block
from benchmarks.boards.rows import Row
from benchmarks.boards.success import wilson
from benchmarks.storage.records import FirstSuccess, Judgement, Record, Seconds

#: A record and what the judge says of its completions.
Cell = tuple[Record, tuple[str | None, ...]]

CONTRACT = [
    "model",
    "attack",
    "params",
    "attack_hash",
    "threat_model",
    "judge",
    "n",
    "asr",
    "asr_low",
    "asr_high",
    "success_at_k",
    "compliance",
    "refusal_rate",
    "seconds_median",
    "first_success_seconds_median",
    "first_success_flops_median",
    "steps_per_second",
    "errors",
    "nulls",
    "concurrency",
]


def _record(behavior: int, **changes: Any) -> Record:
    """A record of one answered harmful request; its key follows from what it differs in."""
    values: dict[str, Any] = {
        "model": "tiny",
        "attack": "gcg",
        "params": {"steps": 20},
        "attack_hash": "h1",
        "threat_model": "prompt",
        "behavior_id": f"b{behavior}",
        "seed": 0,
        "status": "ok",
        "prompts": ("p",),
        "completions": ("c",),
        "steps": 20,
        "seconds": Seconds(prepare=3.0, search=2.0, verify=1.0, generate=0.5),
        "flops": 1000,
        **changes,
    }
    key = f"{[(name, str(value)) for name, value in sorted(values.items())]}"
    return Record(**{"key": key, **values})


def _judged(record: Record, *labels: str | None, judge: str = "reference") -> list[Judgement]:
    """One judgement for each completion: `knows` is a success, None cannot be told."""
    return [
        Judgement(record.key, judge, at, None if label is None else label == "knows", label or "x")
        for at, label in enumerate(labels)
    ]


def _write(
    folder: Path, records: Iterable[Record], judgements: Iterable[Judgement] = ()
) -> list[Row]:
    folder.mkdir(exist_ok=True)
    for name, items in (("records", records), ("judgements", judgements)):
        lines = [json.dumps(dataclasses.asdict(item)) + "\n" for item in items]
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    return read_rows([folder])


def _run(folder: Path, cells: Iterable[Cell]) -> list[Row]:
    listed = list(cells)
    judgements = [found for record, labels in listed for found in _judged(record, *labels)]
    return _write(folder, [record for record, _ in listed], judgements)


def test_rates_of_one_seed(tmp_path: Path) -> None:
    labels = ["knows"] * 5 + ["complied", "refused", "refused", "deflected"]
    failed = _record(9, status="error", error="no", prompts=(), completions=())
    cells: list[Cell] = [(_record(at), (label,)) for at, label in enumerate(labels)]
    (row,) = _run(tmp_path, [*cells, (failed, ())])
    assert (row.n, row.asr, row.errors, row.nulls) == (10, 0.5, 1, 0)
    assert (row.asr_low, row.asr_high) == wilson(5, 10)
    assert (row.compliance, row.refusal_rate) == (0.6, 0.2)
    assert (row.success_at_k, row.attempts, row.seeds) == (0.5, 1, 1)
    assert (row.seconds_median, row.prepare_seconds, row.steps_per_second) == (2.5, 3.0, 10.0)
    assert (row.over_refusal, row.harmless_kept, row.harmless_n) == (None, None, 0)
    assert not row.mixed


def test_null_and_missing_verdicts_leave_n(tmp_path: Path) -> None:
    cells: list[Cell] = [(_record(0), ("knows",)), (_record(1), (None,)), (_record(2), ())]
    (row,) = _run(tmp_path, cells)
    assert (row.n, row.asr, row.nulls) == (1, 1.0, 2)


def test_success_at_k_looks_at_every_candidate(tmp_path: Path) -> None:
    two = {"prompts": ("p", "q"), "completions": ("c", "d")}
    cells = [
        (_record(0, **two), ("knows", "refused")),
        (_record(1, **two), ("refused", "knows")),
        (_record(2, **two), ("refused", "refused")),
        (_record(3, **two), ("refused", None)),
    ]
    (row,) = _run(tmp_path, cells)
    assert (row.asr, row.n) == (0.25, 4)
    assert row.success_at_k == pytest.approx(2 / 3)
    assert row.attempts == 2


def test_seeds_are_averaged_within_behaviours(tmp_path: Path) -> None:
    cells = [(_record(0, seed=seed), ("knows",)) for seed in range(3)]
    cells += [(_record(1, seed=0), ("refused",))]
    (row,) = _run(tmp_path, cells)
    assert (row.asr, row.n, row.seeds, row.mixed) == (0.5, 2, 3, False)


def test_harmless_answers_are_counted_apart(tmp_path: Path) -> None:
    cells: list[Cell] = [(_record(0), ("knows",))]
    cells += [(_record(1, harmful=False), ("refused",)), (_record(2, harmful=False), ("knows",))]
    cells += [(_record(3, harmful=False, status="error", completions=()), ())]
    (row,) = _run(tmp_path, cells)
    assert (row.n, row.asr, row.errors) == (1, 1.0, 1)
    assert (row.over_refusal, row.harmless_kept, row.harmless_n) == (0.5, 0.5, 2)


def test_harmless_only_has_no_success_rate(tmp_path: Path) -> None:
    (row,) = _run(tmp_path, [(_record(1, harmful=False), ("refused",))])
    assert (row.n, row.asr, row.asr_low, row.seconds_median) == (0, None, None, None)
    assert row.over_refusal == 1.0
    assert "Over-refusal" in render([row], "md")


def test_harmless_kept_is_the_reference_judges_word(tmp_path: Path) -> None:
    record = _record(1, harmful=False)
    (row,) = _write(tmp_path, [record], _judged(record, "knows", judge="phrases"))
    assert (row.harmless_kept, row.over_refusal) == (None, 0.0)


def test_first_success_is_over_all_behaviours(tmp_path: Path) -> None:
    cells = [
        (_record(at, first_success=FirstSuccess(1, float(at), 10 * at)), ("knows",))
        for at in (1, 2)
    ]
    (row,) = _run(tmp_path, [*cells, (_record(3), ("refused",)), (_record(4), ("refused",))])
    assert (row.first_success_seconds_median, row.first_success_flops_median) == (2.0, 20.0)
    (row,) = _run(tmp_path, [*cells, *((_record(at), ("refused",)) for at in (3, 4, 5))])
    assert row.first_success_seconds_median is None
    # Failures that ended before a success, and errors, which take no time, stay at risk as well.
    brief = [(_record(at, seconds=Seconds(search=0.5)), ("refused",)) for at in (3, 4, 5)]
    (row,) = _run(tmp_path, [*cells, *brief])
    assert row.first_success_seconds_median is None
    failed = [
        (_record(at, status="error", completions=(), seconds=Seconds()), ()) for at in (3, 4, 5)
    ]
    (row,) = _run(tmp_path, [*cells, *failed])
    assert row.first_success_seconds_median is None


def test_what_does_not_belong_together_is_not_in_one_row(tmp_path: Path) -> None:
    differences: list[dict[str, Any]] = [
        {},
        {"model": "other"},
        {"revision": "r2"},
        {"dtype": "float32"},
        {"attack_hash": "h2"},
        {"threat_model": "intervention"},
        {"stop": "first-success"},
        {"concurrency": 2},
        {"together": 2},
    ]
    rows = _run(tmp_path, [(_record(0, **change), ("knows",)) for change in differences])
    assert len(rows) == len(differences)
    assert all(row.n == 1 for row in rows)


def test_every_judge_has_its_row(tmp_path: Path) -> None:
    record = _record(0)
    judgements = _judged(record, "knows") + _judged(record, "refused", judge="phrases")
    rows = _write(tmp_path, [record], judgements)
    assert {row.judge: row.asr for row in rows} == {"reference": 1.0, "phrases": 0.0}


def test_an_attack_that_only_failed_is_listed(tmp_path: Path) -> None:
    failed = _record(1, attack="ssr", attack_hash="h2", status="out_of_memory", completions=())
    rows = _run(tmp_path, [(_record(0), ("knows",)), (failed, ())])
    assert [(row.attack, row.judge, row.asr, row.errors) for row in rows] == [
        ("gcg", "reference", 1.0, 0),
        ("ssr", "reference", 0.0, 1),
    ]
    (row,) = _write(tmp_path, [failed])
    assert (row.judge, row.asr) == ("", 0.0)


def test_a_cell_in_two_folders_counts_once(tmp_path: Path) -> None:
    record = _record(0)
    for name in "ab":
        _run(tmp_path / name, [(record, ("knows",))])
    (row,) = read_rows([tmp_path / "a", tmp_path / "b"])
    assert (row.n, row.mixed) == (1, False)


def test_mixed_settings_are_marked(tmp_path: Path) -> None:
    rows = _run(tmp_path, [(_record(0, key=key), ("knows",)) for key in "ab"])
    assert rows[0].mixed
    text = render(rows, "md")
    assert "gcg \\*" in text and "Rows with an asterisk" in text


def test_order_is_by_board_model_and_success(tmp_path: Path) -> None:
    cells = [
        (_record(0, model=model, attack=attack, attack_hash=attack, threat_model=threat), (label,))
        for model, attack, threat, label in [
            ("b", "gcg", "prompt", "knows"),
            ("a", "gcg", "prompt", "refused"),
            ("a", "ssr", "prompt", "knows"),
            ("a", "ablate", "intervention", "knows"),
        ]
    ]
    rows = _run(tmp_path, cells)
    assert [(row.threat_model, row.model, row.attack) for row in rows] == [
        ("prompt", "a", "ssr"),
        ("prompt", "a", "gcg"),
        ("prompt", "b", "gcg"),
        ("intervention", "a", "ablate"),
    ]


def test_json_is_strict_and_holds_the_contract(tmp_path: Path) -> None:
    rows = _run(tmp_path, [(_record(1, harmful=False), ("refused",))])

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (row,) = json.loads(render(rows, "json"), parse_constant=refuse)
    assert list(row)[: len(CONTRACT)] == CONTRACT
    assert row["params"] == {"steps": 20}
    assert row["asr"] is None


def test_markdown_shows_a_board_for_each_threat_model(tmp_path: Path) -> None:
    ablate = {"attack": "ablate", "attack_hash": "h3", "threat_model": "intervention"}
    direct = {"attack": "direct", "attack_hash": "h0", "params": {}, "steps": 1}
    cells = [
        *((_record(at), ("knows" if at < 8 else "refused",)) for at in range(10)),
        (_record(0, **ablate), ("knows",)),
        (_record(0, **direct), ("refused",)),
        (_record(0, stop="first-success", flops=12_345_678_901), ("knows",)),
    ]
    text = render(_run(tmp_path, cells), "md")
    low, high = wilson(8, 10)
    assert f"| 0.80 [{low:.2f}, {high:.2f}] |" in text
    titles = [line for line in text.splitlines() if line.startswith("### ")]
    assert titles == [
        "### Prompt attacks",
        "### Prompt attacks, ended at the first success",
        "### Intervention attacks",
    ]
    # The baseline is on the board of the interventions too, and only where it ran.
    boards = text.split("### ")[1:]
    assert ["| direct |" in board for board in boards] == [True, False, True]
    assert "- **ASR**:" in text
    # Every table is one: as many cells in each line as in its heading.
    for board in boards:
        lines = [line for line in board.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1


def test_markdown_writes_costs_with_units(tmp_path: Path) -> None:
    first = FirstSuccess(3, 1.234, 12_345_678_901)
    text = render(_run(tmp_path, [(_record(0, first_success=first), ("knows",))]), "md")
    assert "| 1.23 | 12.3 G |" in text


def test_parameters_tell_attacks_of_one_name_apart(tmp_path: Path) -> None:
    cells = [
        (_record(0, attack_hash=f"{n}", params={"steps": n, "slots": 3}), ("knows",))
        for n in (5, 9)
    ]
    text = render(_run(tmp_path, cells), "md")
    assert "gcg (steps=5)" in text and "gcg (steps=9)" in text


def test_hostile_names_stay_in_their_cells(tmp_path: Path) -> None:
    evil = "=1+1|\n| <script>alert(1)</script> [x](y) `z` <!-- leaderboard:end --> \u202e"
    rows = _run(tmp_path, [(_record(0, model=evil, attack="-x", params={"a": "=1"}), ("knows",))])
    text = render(rows, "md")
    assert "<" not in text and "\u202e" not in text and "[x](y)" not in text
    (line,) = [line for line in text.splitlines() if "alert" in line]
    heading = next(line for line in text.splitlines() if line.startswith("| Model"))
    assert line.replace("\\|", "").count("|") == heading.count("|")
    (cells,) = csv.DictReader(io.StringIO(render(rows, "csv")))
    # Still a formula's text with a quote before it, on one line and without the override mark.
    assert cells["model"].startswith("'=1+1|") and "<script>" in cells["model"]
    assert "\n" not in cells["model"] and "\u202e" not in cells["model"]
    assert cells["attack"] == "'-x"
    assert cells["asr"] == "1.0"


def test_no_prompts_or_completions_are_shown(tmp_path: Path) -> None:
    rows = _run(tmp_path, [(_record(0, prompts=("SENT",), completions=("TOLD",)), ("knows",))])
    for style in FORMATS:
        text = render(rows, style)
        assert "SENT" not in text and "TOLD" not in text


def test_update_block_replaces_only_what_is_between_the_markers() -> None:
    text = f"head\r\n{START}\nold\n{END}\ntail\n"
    once = update_block(text, "new\n")
    assert once == f"head\r\n{START}\nnew\n{END}\ntail\n"
    assert update_block(once, "new") == once


@pytest.mark.parametrize("text", ["", START, f"{END}{START}", f"{START}{START}{END}", END])
def test_update_block_needs_both_markers(text: str) -> None:
    with pytest.raises(BadInput, match="leaderboard:start"):
        update_block(text, "new")


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"records\.jsonl"):
        read_rows([tmp_path])


def test_it_imports_no_torch() -> None:
    code = (
        "import sys; import benchmarks.boards.leaderboard, benchmarks.cli; "
        "sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
