"""Inspections: a whole small one, its numbers against direct formulas, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from attacks.core.analysis.attribution import logit_lens
from attacks.core.reading.states import last_token
from attacks.core.sites import Site
from benchmarks.cli import main
from benchmarks.harness import fitting
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.inspect import Options, inspect, linear, page
from benchmarks.inspect.results import GROUPS, plain
from conftest import ROOT, pocket, tiny
from runs import write_behaviors

LIMIT, LAYERS, HEADS = 12, 6, 4
PICTURES = ("layers", "cosines", "plane", "heads", "depth", "curves", "angles")
#: What directions and probes are fitted on: a quarter of the set is enough.
TRAIN = "pocket-train[0:28]"
#: As short as the searches can be.
QUICK = {
    "train": TRAIN,
    "limit": LIMIT,
    "steps": 2,
    "attacked": 2,
    "restarts": 2,
    "reverse_steps": 2,
}


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small inspection."""
    return inspect(Options("pocket-llama", out=tmp_path_factory.mktemp("out"), **QUICK))


@pytest.fixture(scope="module")
def data(page_path: Path) -> dict[str, Any]:
    """Its numbers."""
    return json.loads((page_path.parent / "data.json").read_text())


def test_the_page_shows_each_picture(page_path: Path) -> None:
    text = page_path.read_text()
    assert re.findall(r"!\[[^\]]+\]\((\w+)\.png\)", text) == list(PICTURES)
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", text)
    assert len(re.findall(r"\| \d \| (?:faithful|no effect|dormant path) \|", text)) == LAYERS
    for name in PICTURES:
        image = imread(page_path.parent / f"{name}.png")
        height, width, _ = image.shape
        assert width == 900 and height >= 300
        # More than a blank canvas, and less than one all covered.
        white = (image[..., :3] > 0.99).all(-1).mean()
        assert 0.05 < white < 0.99 or name == "cosines"
        assert image[..., :3].std() > 0.03


def test_the_numbers_have_the_shapes_of_the_model(data: dict[str, Any]) -> None:
    layers, attribution, angles = data["layers"], data["attribution"], data["angles"]
    assert data["n_test"] == [LIMIT, LIMIT] and data["refuses"]
    assert len(layers["accuracy"]) == LAYERS and layers["effect"][-1] is None
    assert np.allclose(np.diag(layers["cosines"]), 1, atol=1e-5)
    assert np.shape(attribution["patching"]) == np.shape(attribution["direct"]) == (LAYERS, HEADS)
    assert len(attribution["harmful"]) == LAYERS + 1
    # A harmful prompt speaks for refusing in the end, and a harmless one against it.
    assert attribution["harmful"][-1] > 0 > attribution["harmless"][-1]
    assert set(data["curves"]["groups"]) == set(GROUPS)
    assert {np.shape(rows) for rows in data["curves"]["groups"].values()} == {(2, LAYERS)}
    assert np.shape(angles["between"]) == (LAYERS, angles["dimension"])
    assert len(data["plane"]["moves"]) == len(data["reverse"]["found"]) == 2
    assert [move["behavior"] for move in data["plane"]["moves"]] == data["curves"]["prompts"]
    paths = data["paths"]["rows"]
    assert [row["layer"] for row in paths] == list(range(LAYERS)) and not data["paths"]["note"]
    assert all(abs(row["share"]["unread"]) < 1e-3 < row["unread"] < 1 for row in paths)
    assert {row["rank"] for row in paths} == {128}
    assert all(row["cosine"] >= row["start"] - 1e-5 for row in data["reverse"]["found"])


def test_the_numbers_agree_with_direct_formulas(data: dict[str, Any]) -> None:
    model, layer = pocket("pocket-llama"), data["layers"]["chosen"]
    rows = load_behaviors("pocket-test")
    texts = [[row.text for row in rows if row.harmful == flag][:LIMIT] for flag in (True, False)]
    states = []
    for text in [*texts[0], *texts[1]]:
        ids, _ = model.chat.tokens(model.conversation(text))
        hidden = model.hf(ids.unsqueeze(0), output_hidden_states=True).hidden_states
        states.append(hidden[layer + 1][0, -1].double().numpy())
    points = np.stack(states)
    centred = points - points.mean(0)
    variance = np.linalg.eigvalsh(centred.T @ centred)[::-1]
    assert np.allclose(data["plane"]["explained"], variance[:2] / variance.sum(), atol=1e-5)
    distances = np.linalg.norm(points[0] - points, axis=1)
    drawn = np.array(data["plane"]["harmful"] + data["plane"]["harmless"])
    assert (np.linalg.norm(drawn[0] - drawn, axis=1) <= distances + 1e-4).all()
    # The directions are fitted on all training prompts, whatever the random numbers.
    train = [row.for_attack() for row in load_behaviors(TRAIN)]
    means = []
    for flag in (True, False):
        texts_of = [row.text for row in train if row.harmful == flag]
        found = last_token(model, texts_of, [Site(layer, "resid_post")])
        means.append(next(iter(found.values())).double().mean(0).numpy())
    direction = (means[0] - means[1]) / np.linalg.norm(means[0] - means[1])
    cosines = points @ direction / np.linalg.norm(points, axis=1)
    curve = [row[layer] for row in data["curves"]["groups"]["harmful"]]
    assert np.allclose(curve, cosines[:2], atol=1e-4)
    assert np.isclose(data["reverse"]["harmless"], cosines[LIMIT:].mean(), atol=1e-4)
    # Llama's final norm has a gain only.
    logits = model.hf.lm_head.weight.double().numpy() @ (
        model.hf.model.norm.weight.double().numpy() * direction
    )
    shown = data["lens"][layer]
    assert np.allclose(shown["raised_logits"], np.sort(logits)[::-1][:8], atol=1e-4)
    assert shown["raised"][0] == model.chat.decode([[int(logits.argmax())]])[0]
    assert shown["lowered"][0] == model.chat.decode([[int(logits.argmin())]])[0]


def test_a_second_inspection_reuses_what_was_fitted(
    page_path: Path, data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(fitting, "survey", fail)
    folder = page_path.parent / "artefacts"
    again = Options("pocket-llama", out=tmp_path / "again", artefacts=folder, **QUICK)
    written = inspect(again)
    assert json.loads((written.parent / "data.json").read_text()) == data
    assert written.read_text() == page_path.read_text()
    assert sorted(path.name for path in (tmp_path / "again" / "artefacts").iterdir()) == sorted(
        path.name for path in folder.iterdir()
    )
    other = Options("pocket-llama", out=tmp_path / "other", artefacts=folder, seed=1, **QUICK)
    with pytest.raises(AssertionError, match="fitted again"):
        inspect(other)


@pytest.mark.slow
def test_a_model_that_does_not_refuse(tmp_path: Path) -> None:
    options = Options("pocket-llama-raw", out=tmp_path, **QUICK)
    text = inspect(options).read_text()
    assert "does not seem to refuse" in text and "Left out" in text
    assert "Verdict" not in text
    assert "heads.png" not in text and not (tmp_path / "heads.png").exists()
    effects = json.loads((tmp_path / "data.json").read_text())["layers"]["effect"]
    assert effects == [None] * LAYERS


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("", "--model"),
        ("--model no-such-model --train pocket-train --behaviors pocket-test", "no-such-model"),
        ("--model ./nowhere --train pocket-train --behaviors pocket-test", "no such folder"),
        ("--model some/model", "give --train NAME_OR_FILE and --behaviors NAME_OR_FILE"),
        ("--model some/model --behaviors pocket-test", "give --train NAME_OR_FILE"),
        ("--model pocket-llama --train nothing", "unknown behaviour set 'nothing'"),
        ("--model pocket-llama --train pocket-test", "overlaps the test set 'pocket-test'"),
        ("--model pocket-llama --behaviors few.jsonl", "3 harmful and 3 harmless"),
        ("--model pocket-llama --limit 3", "at least 4"),
        ("--model pocket-llama --limit many", "--limit"),
        ("--model pocket-llama --out mine", "not written by"),
    ],
)
def test_bad_input_is_one_line(
    flags: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_behaviors(Path("few.jsonl"), 3)
    Path("mine").mkdir()
    Path("mine/README.md").write_text("my own")
    assert main(["inspect", *flags.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("reroute: ") and reason in captured.err
    assert not Path("runs").exists()
    assert Path("mine/README.md").read_text() == "my own"


def test_flags_become_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Options] = []
    monkeypatch.setattr(
        "benchmarks.inspect.inspect", lambda options: seen.append(options) or Path("page")
    )
    flags = (
        "--model m --train a --behaviors b --out o --limit 9 --seed 3 --device cpu "
        "--dtype float32 --system Hello --artefacts f"
    )
    assert main(["inspect", *flags.split()]) == 0
    assert main(["inspect", "--model", "m"]) == 0
    assert seen == [
        Options("m", "a", "b", Path("o"), 9, 3, "cpu", "float32", "Hello", artefacts=Path("f")),
        Options("m"),
    ]


def test_angles_of_known_subspaces() -> None:
    basis = np.eye(6)
    assert np.allclose(linear.angles(basis[:, :2], basis[:, :2]), 0)
    assert np.allclose(linear.angles(basis[:, :2], basis[:, 2:4]), 90)
    tilted = np.stack([basis[:, 0], (basis[:, 1] + basis[:, 2]) / np.sqrt(2)], axis=1)
    assert np.allclose(linear.angles(basis[:, :2], tilted), [0, 45])
    # Two random lines in a plane are 45 degrees apart on average.
    chance = linear.chance_angles(2, 1, 4000, np.random.default_rng(0))
    assert np.allclose(chance, 45, atol=1.5)


def test_subspaces_are_those_of_centred_rows() -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(40, 2)) @ np.eye(5)[:2] + 7
    found = linear.principal_subspace(plane, 4)
    assert found.shape == (5, 2)
    assert np.allclose(linear.angles(found, np.eye(5)[:, :2]), 0, atol=1e-5)


def test_components_are_turned_towards_the_first_class() -> None:
    rng = np.random.default_rng(0)
    high, low = rng.normal(size=(20, 4)) + 3, rng.normal(size=(30, 4))
    for first, second in ((high, low), (low, high)):
        pca = linear.fit_pca(first, second)
        assert (pca(first).mean(0) > pca(second).mean(0)).all()
        assert np.allclose(pca(np.concatenate([first, second])).mean(0), 0)


def test_the_lens_centres_where_the_norm_does() -> None:
    model = tiny("gpt2")
    norm = model.hf.transformer.ln_f
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, model.width))
    direction = torch.randn(1, model.width, generator=torch.Generator().manual_seed(0))
    # A long vector outweighs the norm's epsilon; its bias is nought here.
    spread = (direction - direction.mean()).pow(2).mean().sqrt()
    wanted = model.hf.lm_head(norm(direction * 1e4)) * spread
    assert torch.allclose(logit_lens(model, direction), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "text",
    ["<img src=x onerror=alert(1)>", "a|b`c`*d*_e_[f](http://g.h)", "$x$ www.a.b @c", "\n# a\x1b"],
)
def test_hostile_text_stays_text(text: str) -> None:
    shown = page.code(text)
    inner = shown.removeprefix("<code>").removesuffix("</code>")
    assert re.fullmatch(r"(?:[A-Za-z0-9 ,'\u2423-]|&#\d+;)*", inner)
    assert page.code(" a ") == "<code>\u2423a\u2423</code>"
    assert len(page.code("a" * 10_000)) < 200


def test_numbers_that_are_not_finite_become_null() -> None:
    nan, inf = float("nan"), float("inf")
    assert plain({"a": [1.0, nan, (inf, "x", None)]}) == {"a": [1.0, None, [None, "x", None]]}


def test_other_commands_load_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, benchmarks.cli, benchmarks.commands.basic, benchmarks.boards.leaderboard; "
        "sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
