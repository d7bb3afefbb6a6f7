"""Activations and next-token distributions at the end of plain prompts, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attacks.core.interventions import Intervention
from attacks.core.prompt import Messages
from attacks.core.sites import Site

if TYPE_CHECKING:
    from attacks.core.model import Model

LEAST_LOG_PROB = -1000.0
"""Below this a log-probability is as good as minus infinity: its probability is 0 in float64."""


def _equal_lengths(sequences: Sequence[Tensor], batch_size: int) -> Iterator[list[int]]:
    """Indices of sequences of one length: batches that need no padding are exact."""
    groups: dict[int, list[int]] = {}
    for index, sequence in enumerate(sequences):
        groups.setdefault(len(sequence), []).append(index)
    for members in groups.values():
        for start in range(0, len(members), batch_size):
            yield members[start : start + batch_size]


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
    return last_of(
        model,
        [prompt.ids for prompt in prompts],
        sites,
        roles=[prompt.roles for prompt in prompts],
        interventions=interventions,
        batch_size=batch_size,
    )


@torch.no_grad()
def last_of(
    model: Model,
    sequences: Sequence[Tensor],
    sites: Sequence[Site],
    *,
    roles: Sequence[Tensor] | None = None,
    interventions: Sequence[Intervention] = (),
    batch_size: int = 64,
) -> dict[Site, Tensor]:
    """`last_token` of sequences of ids, (T,) each; `roles` as long, for interventions."""
    rows: dict[Site, list[Tensor]] = {site: [torch.empty(0)] * len(sequences) for site in sites}
    for members in _equal_lengths(sequences, batch_size):
        length = len(sequences[members[0]])
        reads = {site: site.at(length) for site in sites}
        trace = model.trace(
            torch.stack([sequences[index] for index in members]),
            list(reads.values()),
            interventions=interventions,
            roles=roles[members[0]] if roles else None,
        )
        for site, read in reads.items():
            for index, row in zip(members, trace[read][:, -1].float().cpu(), strict=True):
                rows[site][index] = row
    return {site: torch.stack(values) for site, values in rows.items()}


@torch.no_grad()
def first_token_kl(
    model: Model, conversation: Messages, interventions: Sequence[Intervention]
) -> float:
    """KL(as it is || changed) of the first token of the answer, in nats, float64.

    What arXiv 2406.11717 (appendix C) and 2512.13655 (section 4) measure on harmless prompts: how
    far interventions move a model where they should not. Tokens that they make all but impossible
    count with a log-probability of `LEAST_LOG_PROB`, so that the divergence stays finite.

    Raises:
        BadInput: as `Model.trace` and `Chat.render`.
    """
    prompt = model.chat.prompt(conversation, target=None, rng=torch.Generator())
    read = Site(-1, "logits").at(len(prompt.ids))
    plain, changed = (
        model.trace(prompt.ids.unsqueeze(0), [read], interventions=applied, roles=prompt.roles)
        for applied in ((), interventions)
    )
    before, after = (
        trace[read][0, -1].double().log_softmax(0).clamp_min(LEAST_LOG_PROB)
        for trace in (plain, changed)
    )
    return float((before.exp() * (before - after)).sum())


def next_token_log_probs(
    model: Model, texts: Sequence[str], *, interventions: Sequence[Intervention] = ()
) -> Tensor:
    """(N, V) log-probabilities of the first token of the answer."""
    site = Site(-1, "logits")
    logits = last_token(model, texts, [site], interventions=interventions)[site]
    return logits.log_softmax(1)
