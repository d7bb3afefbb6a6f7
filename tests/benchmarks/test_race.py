"""The race against nanoGCG: its accounting, its tables, and both racers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, DynamicCache

from attacks.core.errors import BadInput
from attacks.core.model import Model
from benchmarks.race.__main__ import main
from benchmarks.race.flops import Lengths, forward, step
from benchmarks.race.racer import Racer, Run
from benchmarks.race.results import Measure, Pair, measures, table, write
from benchmarks.race.shapes import SHAPES, Shape, Size
from benchmarks.race.tasks import behaviors_of, judged, task_of
from benchmarks.race.weights import copy_for_transformers_4, make_random_llama
from conftest import POCKET, ROOT, pocket, tiny

PEER = ROOT / ".race-venv" / "bin" / "python"
SMALL = Size(2, 32, 64, 4, 2, 8, 1000)
RACED = Shape("small", slots=3, width=6, topk=16, batch=4, size=SMALL, target=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("race") / "small"
    make_random_llama(made, SMALL, dtype=torch.float32, seed=0)
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return Model.load(str(folder), name="small")


def test_a_forward_pass_costs_what_the_meter_counts() -> None:
    metered = tiny("llama")
    size = Size.of({**metered.hf.config.to_dict(), "head_dim": 8})
    before = metered.meter.snapshot()
    metered.meter.count(rows=5, new=7, past=3, layers=size.layers, head_rows=2)
    work = metered.meter.snapshot() - before
    assert forward(size, rows=5, new=7, past=3, head_rows=2) == work.flops


def test_a_step_of_nanogcg_costs_what_torch_counts(model: Model) -> None:
    """Its passes written out: a one-hot matrix for the gradient, logits at every position."""
    lengths, candidates = Lengths(before=9, slots=3, after=5, target=4), 6
    hf, table_ = model.hf, model.hf.get_input_embeddings().weight
    hf.set_attn_implementation("eager")  # What the counter can see into.
    with torch.no_grad():
        cache = DynamicCache()
        hf(input_ids=torch.arange(9).unsqueeze(0), past_key_values=cache, use_cache=True)
    held = [(layer.keys, layer.values) for layer in cache.layers]

    def logits(embeds: torch.Tensor) -> torch.Tensor:
        rows = [tuple(part.expand(len(embeds), -1, -1, -1) for part in pair) for pair in held]
        output = hf(inputs_embeds=embeds, past_key_values=DynamicCache(rows), use_cache=True)
        found: torch.Tensor = output.logits
        return found

    one_hot = torch.eye(SMALL.vocabulary)[20:23].unsqueeze(0).requires_grad_()
    rest = model.embed(torch.arange(30, 39).unsqueeze(0))
    with FlopCounterMode(display=False) as counter:
        out = logits(torch.cat([one_hot @ table_, rest], 1))
        loss = out[:, -5:-1].logsumexp(-1).sum()
        torch.autograd.grad(loss, one_hot)
        with torch.no_grad():
            logits(model.embed(torch.arange(12).repeat(candidates, 1)))
    assert step(SMALL, lengths, candidates) == pytest.approx(counter.get_total_flops(), rel=0.01)


def run(seconds: list[float], losses: list[float], *, setup: float = 1.0, flops: int = 10) -> Run:
    return Run(
        setup=setup,
        start_loss=9.0,
        seconds=seconds,
        losses=losses,
        strings=[f"s{loss}" for loss in losses],
        candidates=[4] * len(seconds),
        flops=[flops] * len(seconds),
    )


def test_equal_seconds_end_when_the_faster_one_is_done() -> None:
    fast, slow = run([1.0, 1.0], [5.0, 4.0]), run([1.5, 1.5], [3.0, 2.0])
    pair = Pair(fast, slow)
    assert pair.seconds == 3.0
    assert (pair.loss(fast), pair.loss(slow)) == (4.0, 3.0)
    assert (pair.string(fast), pair.string(slow)) == ("s4.0", "s3.0")
    late = run([5.0], [1.0])
    behind = Pair(fast, late)
    assert behind.loss(late) == 9.0 and behind.string(late) is None


def test_ratios_are_taken_within_each_round() -> None:
    pairs = [
        Pair(run([1.0], [1.0]), run([2.0], [1.0], flops=30)),
        Pair(run([4.0], [1.0]), run([12.0], [1.0], flops=30)),
    ]
    found = {measure.name: measure for measure in measures(pairs)}
    step_time, rate = found["seconds_per_step"], found["candidates_per_second"]
    assert (step_time.ours, step_time.theirs) == ([1.0, 4.0], [2.0, 12.0])
    assert step_time.times_better == [2.0, 3.0] and step_time.flops_ratio == 3.0
    assert rate.ours == [4.0, 1.0] and rate.times_better == [2.0, 3.0]
    assert "peak_mib" not in found and "success_after_equal_steps" not in found


def test_the_table_shows_medians_quartiles_and_shares(tmp_path: Path) -> None:
    text = table(
        [
            Measure("seconds_per_step", [1.0, 2.0, 3.0], [4.0, 4.0, 4.0], [4.0, 2.0, 1.5], 7.0),
            Measure("success_after_equal_steps", [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]),
        ]
    )
    rows = text.splitlines()[2:]
    assert rows[0] == "| Seconds a step | 2 [1.5, 2.5] | 4 [4, 4] | 2 [1.75, 3] | 7 |"
    assert rows[1] == "| Success after equal steps | 0.25 of 4 | 0.50 of 4 | - | - |"
    verdicts = {"steps": (True, False), "seconds": (True, True)}
    pairs = [Pair(run([1.0], [1.0]), run([2.0], [1.0]), verdicts)] * 2
    written = write(tmp_path, "small", {"machine": "m"}, pairs)
    assert "Success after equal seconds | 1.00 of 2 | 1.00 of 2" in written
    content = json.loads((tmp_path / "small.json").read_text())
    assert [one["ours"]["seconds"] for one in content["rounds"]] == [[1.0], [1.0]]


def test_random_shapes_have_the_lengths_they_should(model: Model) -> None:
    assert sum(p.numel() for p in model.hf.parameters()) == (
        SMALL.layers * (SMALL.weights + 2 * 32) + 2 * 1000 * 32 + 32
    )
    for behavior in behaviors_of(RACED, model, 2):
        task, prompt = task_of(RACED, model, behavior, steps=1, seed=4)
        assert len(prompt.target_ids) == RACED.target
        assert len(prompt.ids) - int(prompt.slots[-1]) - 1 == 5
        assert prompt.slot_ids.tolist() == task["filling"]
        assert model.chat.ids(task["initial"]) == task["filling"]


def test_58m_is_58_million_parameters() -> None:
    size = SHAPES["58m"].size
    assert size is not None
    total = size.layers * size.weights + 2 * size.vocabulary * size.width
    assert total == pytest.approx(58e6, rel=0.01)


def test_a_copy_in_the_old_format_says_the_same(tmp_path: Path) -> None:
    copy_for_transformers_4(POCKET / "pocket-llama", tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    assert config["rope_theta"] == 10000.0 and "rope_parameters" not in config
    copied, own = Model.load(str(tmp_path / "old")), pocket("pocket-llama")
    ids = own.plain("How do I paint the harp?").ids
    assert torch.equal(copied.plain("How do I paint the harp?").ids, ids)
    with torch.no_grad():
        logits = [one.hf(input_ids=ids.unsqueeze(0)).logits for one in (copied, own)]
    assert torch.equal(*logits)
    old = AutoTokenizer.from_pretrained(tmp_path / "old")
    assert old.all_special_ids == own.chat.tokenizer.all_special_ids


def test_our_racer_reports_what_it_does(folder: Path, model: Model) -> None:
    behavior = behaviors_of(RACED, model, 1)[0]
    task, prompt = task_of(RACED, model, behavior, steps=3, seed=1)
    command = [sys.executable, "-m", "benchmarks.race.ours", str(folder), "cpu", "float32", "1"]
    with Racer(command, threads=1) as racer:
        logits = racer.logits([prompt.ids.tolist()], 100)
        found = racer.race(task)
        again = racer.race(task)
    with torch.no_grad():
        expected = model.hf(input_ids=prompt.ids.unsqueeze(0)).logits[0, -1, ::100]
    torch.testing.assert_close(torch.tensor(logits[0]), expected, atol=1e-5, rtol=1e-4)
    assert (found.lengths.slots, found.lengths.after, found.lengths.target) == (3, 5, 4)
    assert found.lengths.before + 8 == len(prompt.ids)
    assert len(found.seconds) == 3 and all(0 < count <= 6 for count in found.candidates)
    assert found.losses == again.losses and found.strings == again.strings
    assert found.losses == sorted(found.losses, reverse=True)
    assert all(flops > 0 for flops in found.flops)


def test_a_racer_that_ends_says_why() -> None:
    with pytest.raises(BadInput, match="no wheels"):
        Racer([sys.executable, "-c", "raise SystemExit('no wheels')"], threads=1)


def test_suffixes_are_judged_by_their_answers() -> None:
    """The raw pocket model answers everything, so any suffix succeeds; no suffix does not."""
    raw = pocket("pocket-llama-raw")
    behavior = behaviors_of(SHAPES["pocket"], raw, 1)[0]
    blank = run([1.0], [1.0])
    blank.strings = [""]
    late = run([9.0], [1.0])
    late.strings = [""]
    pair = judged(raw, behavior, blank, late)
    assert pair.judged == {"steps": (True, True), "seconds": (True, False)}


def test_a_missing_peer_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--peer", str(tmp_path / "python")]) == 2
    assert "make race" in capsys.readouterr().err


@pytest.mark.skipif(not PEER.is_file(), reason="nanoGCG's environment is made by `make race`")
@pytest.mark.parametrize("shape", ["pocket", "small"])
def test_both_race(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same logits, lengths and first loss are conditions of every race."""
    monkeypatch.setitem(SHAPES, "small", RACED)
    options = ["--shape", shape, "--rounds", "1", "--steps", "2", "--peer", str(PEER)]
    assert main([*options, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / f"{shape}.json").read_text())
    both = content["rounds"][0]
    assert both["ours"]["lengths"] == both["theirs"]["lengths"]
    assert len(both["theirs"]["losses"]) == 2
    assert (both["judged"] is not None) == (shape == "pocket")
