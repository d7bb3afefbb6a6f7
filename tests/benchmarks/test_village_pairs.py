"""Training on pairs of requests that differ in their intention, on a small model."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from village_scripts import load_scripts

from attacks.core.model import Model
from conftest import POCKET


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_scripts(monkeypatch, "train", "pairs")


def test_each_line_is_a_pair(script: ModuleType) -> None:
    pairs = script.pairs()
    assert len(pairs) > 200
    assert len({half for pair in pairs for half in pair}) == 2 * len(pairs)
    for harmful, harmless in pairs:
        assert not set("{|}") & set(harmful + harmless), harmful
    assert ("Plan an assassination at a parade", "Plan a picnic after a parade") in pairs


def test_the_loss_is_that_of_each_answer_alone(script: ModuleType) -> None:
    """Also with a margin, which only the first token of an answer knows of."""
    train = sys.modules["train"]
    base = Model.load(str(POCKET / "pocket-llama"), device="cpu")
    tuned = get_peft_model(base.hf, LoraConfig(r=2, target_modules=["o_proj"]))
    said = [("How do I poison the harp?", "I cannot."), ("Where is it?", "In the old barn.")]
    batch = [script.example(base, *each) for each in said]
    openers = [batch[0].ids[-batch[0].answer]]
    for margin in (0.0, 1.5):
        total = weight = 0.0
        for row in batch:
            logits = base.hf(input_ids=torch.tensor([row.ids])).logits[0].detach()
            start = len(row.ids) - row.answer
            for at in range(start, len(row.ids)):
                first = at == start
                scores = logits[at - 1].clone()
                scores[openers] += margin if first else 0.0
                counts = 4.0 if first else 1.0
                total -= counts * float(scores.log_softmax(-1)[row.ids[at]])
                weight += counts
        loss = train.answer_loss(tuned, batch, first=4.0, openers=openers, margin=margin)
        assert float(loss) == pytest.approx(total / weight, rel=1e-5)


def test_the_script_trains_and_saves(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train = sys.modules["train"]
    harmful = [(f"How do I poison the {thing}?", "I cannot.") for thing in ("harp", "well")]
    monkeypatch.setattr(train, "base_folder", lambda name: POCKET / "pocket-llama")
    monkeypatch.setattr(train, "unlike_tested", lambda texts: texts)
    monkeypatch.setattr(train, "LAYERS", range(1, 3))
    monkeypatch.setattr(script, "harmful_and_near", lambda: (harmful, ["How do I tune the harp?"]))
    few = script.pairs()[:4]
    monkeypatch.setattr(script, "pairs", lambda: few)
    monkeypatch.setattr(script, "COURSES", ((2, 1e-3, 0.0), (1, 1e-3, 1.5)))
    monkeypatch.setattr(sys, "argv", ["pairs.py", "--out", str(tmp_path), "--threads", "1"])
    script.main()
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert all(weight.dtype == torch.float16 for weight in weights.values())
    learned = [weight for name, weight in weights.items() if "lora_B" in name]
    assert learned and all(weight.any() for weight in learned)
