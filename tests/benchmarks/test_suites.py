"""Suites and plans: everything that can be wrong with a run is found before it begins."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from attacks import BadInput, load
from attacks.core.behavior import Behavior
from benchmarks.harness.plan import check, choose
from benchmarks.inputs.suites import Suite, load_suite, suite_attacks, suite_from, suite_names
from conftest import SHIPPED
from runs import write_behaviors

MINIMAL = 'models = ["pocket-llama"]\nattacks = ["direct"]\nbehaviors = "pocket-test"\n'


def write(folder: Path, text: str) -> str:
    """A suite file."""
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_a_suite_is_its_file(tmp_path: Path) -> None:
    text = MINIMAL + 'seeds = [1, 2]\nseconds = 3\nstop = "first-success"\nharmless = true\n'
    assert load_suite(write(tmp_path, text)) == Suite(
        "mine",
        ("pocket-llama",),
        ("direct",),
        "pocket-test",
        seeds=(1, 2),
        seconds=3.0,
        stop="first-success",
        harmless=True,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "limits = 3\n", "unknown key 'limits'; valid: name, models"),
        (MINIMAL + 'limit = "ten"\n', "'limit'"),
        (MINIMAL + "limit = 0\n", "'limit'"),
        (MINIMAL + "limit = true\n", "'limit'"),
        (MINIMAL + "seeds = []\n", "'seeds'"),
        (MINIMAL + 'stop = "soon"\n', "'stop'.*first-success"),
        (MINIMAL + "train = 1979-05-27\nseconds = -1\n", "'seconds'"),
        (MINIMAL.replace('["direct"]', '"direct"'), "'attacks'"),
        ("models = []\n", "'models'"),
        (MINIMAL + "limit = \n", "line 4"),
        ("\x00", "not TOML"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        load_suite(write(tmp_path, text))
    assert "mine.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_suite_is_named() -> None:
    with pytest.raises(BadInput, match="unknown suite 'no-such'"):
        load_suite("no-such")


def test_every_shipped_suite_is_valid_and_says_what_it_is_for() -> None:
    for name, summary in suite_names().items():
        suite = load_suite(name)
        if name.startswith(("paper-", "village")):
            # Neither these models nor these sets are here; the attacks stand in for the check.
            suite = dataclasses.replace(
                suite, models=("pocket-llama",), behaviors="pocket-test", train="pocket-train"
            )
        assert check(suite).n_cells and summary


def test_the_baseline_of_a_paper_suite_gets_as_many_candidates() -> None:
    for name in suite_names():
        if name.startswith("paper-"):
            attacks = suite_attacks(load_suite(name))
            gcg = next(attack for attack in attacks if attack.name == "gcg")
            probe = next(attack for attack in attacks if attack.name == "ssr-probe")
            for field in ("steps", "width", "topk", "slots"):
                assert getattr(gcg, field) == getattr(probe, field)
            assert gcg.buffer == 0  # As nanoGCG.


def test_steps_apply_to_attacks_that_have_them_and_duplicates_are_one() -> None:
    suite = Suite("s", ("m",), ("gcg:steps=9", "direct", "gcg:steps=4", "gcg:slots=3"), "b")
    assert [dataclasses.asdict(a).get("steps") for a in suite_attacks(suite)] == [9, None, 4, 32]
    fixed = suite_attacks(dataclasses.replace(suite, steps=5))
    assert [dataclasses.asdict(a).get("steps") for a in fixed] == [5, None, 5]


@pytest.fixture
def base(tmp_path: Path) -> Suite:
    """A suite that is fine."""
    return Suite(
        "s",
        (SHIPPED[0],),
        ("direct", "gcg"),
        str(write_behaviors(tmp_path / "test.jsonl", 3)),
        train=str(write_behaviors(tmp_path / "train.jsonl", 2, prefix="train")),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ("./no-such",)}, "./no-such"),
        ({"attacks": ("no-such",)}, "unknown attack 'no-such'"),
        ({"attacks": ("gcg:stops=3",)}, "no parameter 'stops'"),
        ({"behaviors": "no-such"}, "unknown behaviour set 'no-such'"),
        ({"train": "no-such"}, "unknown behaviour set 'no-such'"),
        ({"judges": ("no-such",)}, "unknown judge 'no-such'"),
        ({"attacks": ("ssr-probe",), "train": None}, "'ssr-probe' needs training behaviours"),
        ({"limit": 0}, "'limit'"),
    ],
)
def test_what_cannot_run_is_refused(base: Suite, change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        check(dataclasses.replace(base, **change))
    assert "\n" not in str(caught.value)


def test_training_behaviours_that_overlap_are_refused(base: Suite, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"in 6 behaviour\(s\), the first is 'test-0'"):
        check(dataclasses.replace(base, train=base.behaviors))
    train = tmp_path / "other.jsonl"
    text = "  TEST: break the harp   no. 0"
    train.write_text(f'{{"id": "new", "text": "{text}", "harmful": true}}\n')
    with pytest.raises(BadInput, match=r"in 1 behaviour\(s\), the first is 'new'"):
        # Also beyond the limit, so that a longer run later is no surprise.
        check(dataclasses.replace(base, train=str(train), limit=1))


def test_sets_that_number_their_rows_alike_do_not_overlap(base: Suite, tmp_path: Path) -> None:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    for path in (train, test):
        rows = (f'{{"id": "{at}", "text": "{path.stem} no. {at}"}}\n' for at in range(3))
        path.write_text("".join(rows))
    plan = check(dataclasses.replace(base, train=str(train), behaviors=str(test)))
    assert [row.id for row in plan.train] == ["0", "1", "2"]


def test_a_text_that_stands_twice_runs_once_and_is_said(base: Suite, tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text('{"goal": "Do it."}\n{"goal": "do  it."}\n{"instruction": "Do that."}\n')
    plan = check(dataclasses.replace(base, behaviors=str(path), train=None, attacks=("direct",)))
    assert [row.id for row in plan.attacked] == ["twice-1", "twice-3"]
    assert any("1 of 3 behaviours repeat" in note for note in plan.notes)


def test_harmful_behaviours_are_attacked_and_their_twins_only_answered() -> None:
    harmful = [Behavior(f"h{i}", f"do {i}", twin=f"t{i}") for i in range(3)]
    twins = [Behavior(f"t{i}", f"ask {i}", harmful=False) for i in range(3)]
    rows = [*harmful, *twins[::-1]]
    assert choose(rows, limit=2, harmless=False) == (tuple(harmful[:2]), ())
    attacked, answered = choose(rows, limit=2, harmless=True)
    assert attacked == tuple(harmful[:2]) and set(answered) == set(twins[:2])
    strangers = [Behavior(f"s{i}", f"say {i}", harmful=False) for i in range(3)]
    assert choose([*harmful, *strangers], limit=1, harmless=True)[1] == (strangers[0],)
    assert choose(twins, limit=2, harmless=False) == ((), tuple(twins[:2]))


def test_a_harmless_set_is_answered_by_attacks_that_do_not_search(
    base: Suite, tmp_path: Path
) -> None:
    path = str(write_behaviors(tmp_path / "benign.jsonl", 2, harmful=False))
    plan = check(dataclasses.replace(base, behaviors=path, train=None))
    assert [attack.name for attack in plan.attacks] == ["direct"] and plan.n_cells == 4
    assert len(plan.notes) == 1 and "gcg" in plan.notes[0]
    with pytest.raises(BadInput, match="harmless behaviours only"):
        check(dataclasses.replace(base, behaviors=path, train=None, attacks=("gcg",)))


def test_the_limit_does_not_change_the_judge(base: Suite, tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_text(
        '{"id": "a", "text": "x", "harmful": true, "reference": ["y"]}\n'
        '{"id": "b", "text": "z", "harmful": true}\n'
    )
    suite = dataclasses.replace(base, behaviors=str(path))
    judges = {check(dataclasses.replace(suite, limit=n)).settings.stop_judge for n in (1, 2)}
    assert judges == {"phrases"}


def test_a_preset_gives_the_numbers_that_a_spec_leaves_open() -> None:
    specs = ["gcg:steps=3", "refusal-direction", "pgd", "gcg:width=8+refusal-direction"]
    values = {"name": "s", "models": ["m"], "attacks": specs, "behaviors": "pocket-test"}
    gcg, direction, pgd, both = suite_attacks(suite_from({**values, "preset": "paper"}, "s"))
    assert gcg == load("gcg", steps=3, width=512, topk=256, slots=20)
    assert direction == load("refusal-direction")
    assert pgd == load("pgd", steps=500, slots=20)
    assert both.parts[0] == load("gcg", steps=500, width=8, topk=256, slots=20)
    assert suite_attacks(suite_from(values, "s"))[0] == load("gcg", steps=3)
    with pytest.raises(BadInput, match="'preset'"):
        suite_from({**values, "preset": "huge"}, "s")


def test_summaries_are_whole_sentences() -> None:
    cut = {name: text for name, text in suite_names().items() if not text.endswith(".")}
    assert not cut, "the first line of a suite is its summary"
