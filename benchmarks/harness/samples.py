"""Answers drawn at random besides the greedy one: how likely an attack succeeds."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from attacks.core.interventions import DrawTokens
from attacks.core.prompt import Messages
from attacks.core.weights import Change
from benchmarks.harness.bench import Bench
from benchmarks.harness.cells import Cell, sample_generator
from benchmarks.harness.timing import Clock


def drawn_answers(
    bench: Bench, cell: Cell, asked: Messages, interventions: Sequence[Change], clock: Clock
) -> list[str]:
    """As many drawn answers to one conversation as the settings say, on the cell's clock.

    Answer i depends on the cell and on i, and not on how many are drawn.

    Raises:
        BadInput: as `Model.generate`.
    """
    settings = bench.setup.settings
    sampling, steps = settings.sampling, settings.max_new_tokens
    if not sampling.samples:
        return []
    uniforms = [
        torch.rand(steps, generator=sample_generator(cell.key, index), dtype=torch.float64)
        for index in range(sampling.samples)
    ]
    draw = DrawTokens(torch.stack(uniforms), sampling.temperature, sampling.top_p)
    with clock.phase("generate"):
        return bench.model.generate(
            [asked] * sampling.samples,
            max_new_tokens=steps,
            # Behind the others, which act on the logits before one is drawn.
            interventions=(*interventions, draw),
        )
