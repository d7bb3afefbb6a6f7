"""The study of sparse latents: what is compared, its page, and what it finds on a shipped model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.studies.latents import BOARDS, MODELS, areas, as_markdown, main, matched, pairs_of
from conftest import ROOT

RESULTS = ROOT / "results" / "latents"


def test_random_latents_are_others_that_are_as_often_active() -> None:
    frequency = torch.linspace(0, 1, 40)
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        found = matched(frequency, [3, 20], rng)
        assert len({*found, 3, 20}) == 4
        assert abs(found[0] - 3) <= 9 and abs(found[1] - 20) <= 6


def test_harmless_requests_get_the_suffixes_of_harmful_ones() -> None:
    test = load_behaviors("pocket-test")
    requests, twins = ([row.text for row in test if row.harmful == flag] for flag in (True, False))
    found = pairs_of(test, [ROOT / board for board in BOARDS], "pocket-llama-hard3")
    assert found["plain"] == (requests, twins)
    sent, same = found["gcg, both"]
    assert found["gcg"] == (sent, twins) and len(sent) == len(same) > 50
    for asked, twin in zip(sent, same, strict=True):
        (request,) = (text for text in requests if asked.startswith(text))
        (harmless,) = (text for text in twins if twin.startswith(text))
        assert asked.removeprefix(request) == twin.removeprefix(harmless) != ""
    assert set(pairs_of(test, [], "pocket-llama")) == {"plain"}


def test_the_area_is_that_of_the_score() -> None:
    states = {"some": (torch.tensor([[3.0], [1.0]]), torch.tensor([[2.0], [0.0]]))}
    assert areas(lambda at: at[:, 0], states) == {"some": 0.75}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--models", "nobody"], "nobody"),
        (["--models", "pocket-llama", "--layer", "6"], "no layer 6; valid: 0 to 5"),
    ],
)
def test_what_is_not_there_is_named(
    wrong: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*wrong, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_committed_page_is_of_the_committed_figures() -> None:
    found = json.loads((RESULTS / "latents.json").read_text("utf-8"))
    assert tuple(row["model"] for row in found) == MODELS
    assert (RESULTS / "README.md").read_text("utf-8") == as_markdown(found)
