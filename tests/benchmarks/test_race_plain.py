"""The race of the search core against a plain loop: the same candidates, and the same losses."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from attacks.core.model.loading import load_parts
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.race import plain
from benchmarks.race.plain_loop import plain_loop
from benchmarks.race.shapes import SHAPES
from benchmarks.race.tasks import task_of
from conftest import POCKET, pocket

SHAPE = SHAPES["pocket"]
STEPS = 4


@pytest.mark.parametrize("name", ["pocket-llama", "pocket-qwen2"])
def test_the_core_and_the_plain_loop_search_alike(name: str) -> None:
    model = pocket(name)
    behavior = next(each for each in load_behaviors("pocket-test") if each.harmful)
    _, prompt = task_of(SHAPE, model, behavior, steps=STEPS, seed=3)
    hf, tokenizer, _ = load_parts(str(POCKET / name), "cpu", "float32")
    rngs = [torch.Generator().manual_seed(3) for _ in range(2)]
    numbers = {"width": SHAPE.width, "topk": SHAPE.topk}
    loop = plain_loop(
        hf.eval().requires_grad_(False),
        tokenizer,
        prompt,
        model.chat.allowed,
        **numbers,
        rng=rngs[0],
    )
    ours = plain.core(model, prompt, SHAPE, rngs[1])
    for (filling, loss), (same, its) in islice(zip(ours, loop, strict=False), STEPS):
        assert filling.tolist() == same.tolist()
        assert loss == pytest.approx(its, rel=1e-4, abs=2e-5)
    # Whatever was drawn was drawn alike.
    assert torch.equal(*(rng.get_state() for rng in rngs))


def test_the_race_writes_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = ["--rounds", "2", "--steps", "2", "--threads", "1", "--out", str(tmp_path)]
    assert plain.main(numbers) == 0
    written = (tmp_path / "plain.md").read_text()
    assert written in capsys.readouterr().out
    assert "in 6 of 6 steps" in written
    rounds = json.loads((tmp_path / "plain.json").read_text())["rounds"]
    for side in ("ours", "plain"):
        for each in rounds:
            assert len(each[side]["seconds"]) == 2 and min(each[side]["seconds"]) > 0
    assert rounds[0]["ours"]["fillings"] == rounds[0]["plain"]["fillings"]


def test_numbers_below_one_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert plain.main(["--threads", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
