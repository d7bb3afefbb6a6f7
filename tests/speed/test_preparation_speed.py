"""What screening directions saves on a deep model: ``make speed``, as `test_core_speed`."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from attacks.core.model import Model
from attacks.core.refusals import screen_directions
from attacks.core.refusals.directions import find_refusal_direction
from benchmarks.inputs.behaviors import load_behaviors
from conftest import pocket


def deep() -> Model:
    """30 layers of width 64, with random weights."""
    torch.manual_seed(0)
    tokenizer = pocket("pocket-llama").chat.tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=30,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
    )
    return Model(LlamaForCausalLM(config).float(), tokenizer, name="random-30")


@pytest.mark.slow
def test_preparing_a_refusal_direction(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, on 96 prompts of a kind: `times_less` than with every direction scored exactly."""
    model, rows = deep(), load_behaviors("pocket-train")
    count = 4 if benchmark.disabled else 96
    some = [[row.text for row in rows if row.harmful == flag][:count] for flag in (True, False)]

    def run() -> int:
        rng = torch.Generator().manual_seed(0)
        return len(find_refusal_direction(model, *some, rng=rng).scores)

    def measured() -> tuple[int, float, int]:
        before, start = model.meter.flops, time.perf_counter()
        scored = run()
        return scored, time.perf_counter() - start, model.meter.flops - before

    run()
    with monkeypatch.context() as patch:
        patch.setattr(screen_directions, "MOST_EXACT", 10**9)
        everything, seconds, flops = measured()
    scored, screened_seconds, screened_flops = measured()
    assert scored == screen_directions.FINE < everything
    assert benchmark.pedantic(run, rounds=1) == scored
    benchmark.extra_info["times_less"] = round(seconds / screened_seconds, 1)
    benchmark.extra_info["times_less_flops"] = round(flops / screened_flops, 1)
    benchmark.extra_info["seconds_exhaustive"] = round(seconds, 1)
    benchmark.extra_info["seconds_screened"] = round(screened_seconds, 1)
