"""Activations and next-token distributions at the end of plain prompts, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attacks.core.interventions import Intervention
from attacks.core.prompt import Prompt
from attacks.core.sites import Site

if TYPE_CHECKING:
    from attacks.core.model import Model


def equal_lengths(prompts: Sequence[Prompt], batch_size: int) -> Iterator[list[int]]:
    """Indices of prompts of one length: batches that need no padding are exact."""
    groups: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(len(prompt.ids), []).append(index)
    for members in groups.values():
        for start in range(0, len(members), batch_size):
            yield members[start : start + batch_size]


@torch.no_grad()
def last_token(
    model: Model,
    texts: Sequence[str],
    sites: Sequence[Site],
    *,
    interventions: Sequence[Intervention] = (),
    batch_size: int = 64,
) -> dict[Site, Tensor]:
    """Activations at the last prompt token of each text, asked as a plain conversation.

    Returns:
        {site: (N, D) float32, or (N, V) for logits}, on the CPU, rows in the order of `texts`.
    """
    prompts = [model.plain(text) for text in texts]
    rows: dict[Site, list[Tensor]] = {site: [torch.empty(0)] * len(prompts) for site in sites}
    for members in equal_lengths(prompts, batch_size):
        length = len(prompts[members[0]].ids)
        reads = {site: site.at(length) for site in sites}
        trace = model.trace(
            torch.stack([prompts[index].ids for index in members]),
            list(reads.values()),
            interventions=interventions,
            roles=prompts[members[0]].roles,
        )
        for site, read in reads.items():
            for index, row in zip(members, trace[read][:, -1].float().cpu(), strict=True):
                rows[site][index] = row
    return {site: torch.stack(values) for site, values in rows.items()}


def next_token_log_probs(
    model: Model, texts: Sequence[str], *, interventions: Sequence[Intervention] = ()
) -> Tensor:
    """(N, V) log-probabilities of the first token of the answer."""
    site = Site(-1, "logits")
    logits = last_token(model, texts, [site], interventions=interventions)[site]
    return logits.log_softmax(1)
