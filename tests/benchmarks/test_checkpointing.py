"""The study of what checkpoints cost: a few steps of it, and the committed figure."""

from __future__ import annotations

import json

from benchmarks.studies.checkpointing import measure
from conftest import ROOT

FIGURE = ROOT / "results" / "scaling" / "checkpointing.json"


def test_searches_with_and_without_checkpoints_are_compared() -> None:
    found = measure(1, 2, every=0.0)
    # One behind: of the state after the first step, once the second has been taken.
    assert found["checkpoints"] == 1 and found["processor seconds of one"] > 0
    both = found["processor seconds"]
    assert found["ratio"] == both["with"][0] / both["without"][0]
    share = found["processor seconds of one"] / both["with"][0]
    assert found["share of the processor's time"] == share


def test_checkpoints_take_a_hundredth_at_most() -> None:
    found = json.loads(FIGURE.read_text())
    assert found["attack"] == "gcg" and found["seconds between checkpoints"] == 10.0
    assert found["checkpoints"] >= 2 and found["share of the processor's time"] <= 0.01
