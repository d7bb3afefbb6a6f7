"""Activations and next-token distributions at chosen tokens of plain prompts, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attacks.core.errors import BadInput
from attacks.core.prompt import INSTRUCTION, POST_INSTRUCTION, Messages, Prompt
from attacks.core.sites import Site
from attacks.core.weights import Change

if TYPE_CHECKING:
    from attacks.core.model import Model

LEAST_LOG_PROB = -1000.0
"""Below this a log-probability is as good as minus infinity: its probability is 0 in float64."""

#: Positions that sequences must begin with in common for these to be computed once: shorter ones
#: spare little. And the rows of a batch on a CPU then, where batches need not be large, and rows of
#: like length are padded less.
_SHARED, _ROWS = 16, 16

#: The positions (P,) to read in a prompt, counted from its start; as many in each prompt.
Locate: TypeAlias = Callable[[Prompt], Sequence[int]]
#: A text, asked as a plain conversation, or what `Model.plain` makes of it.
Text: TypeAlias = str | Prompt


def at_last(prompt: Prompt) -> tuple[int]:
    """The last token, which the answer follows."""
    return (len(prompt.ids) - 1,)


def at_last_instruction(prompt: Prompt) -> tuple[int]:
    """The last token of the request itself, before the template goes on.

    Raises:
        BadInput: no token lies wholly within the request.
    """
    found = (prompt.roles == INSTRUCTION).nonzero()
    if not len(found):
        raise BadInput("no token of the prompt lies within the request; it is empty")
    return (int(found[-1]),)


def tail(prompts: Sequence[Prompt]) -> int:
    """How many of the last tokens are the template's, and the same in all prompts; at least 1."""
    shortest = min(int((prompt.roles == POST_INSTRUCTION).sum()) for prompt in prompts)
    same = 1
    while same < shortest and len({int(prompt.ids[-same - 1]) for prompt in prompts}) == 1:
        same += 1
    return same


def _batches(sequences: Sequence[Tensor], batch_size: int) -> Iterator[list[int]]:
    """Indices of sequences of like length."""
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def equal_lengths(prompts: Sequence[Prompt], batch_size: int) -> Iterator[list[int]]:
    """Indices of prompts of one length: batches that need no padding are exact."""
    groups: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(len(prompt.ids), []).append(index)
    for members in groups.values():
        for start in range(0, len(members), batch_size):
            yield members[start : start + batch_size]


@torch.no_grad()
def read_at(
    model: Model,
    sequences: Sequence[Tensor],
    sites: Sequence[Site],
    positions: Sequence[Sequence[int]],
    *,
    roles: Sequence[Tensor] | None = None,
    interventions: Sequence[Change] = (),
    batch_size: int = 64,
    share: bool = False,
) -> dict[Site, Tensor]:
    """Activations at some positions (P,) of each sequence of ids (T,).

    Shorter sequences of a batch are filled up at the end, where causal attention keeps what is
    there from what comes before it. The positions of `sites` are not used.

    Args:
        model: the model.
        sequences: ids.
        sites: what to read.
        positions: where, in each sequence.
        roles: (T,) of each sequence's positions, for interventions.
        interventions: active in every pass.
        batch_size: sequences of a pass.
        share: compute what all sequences begin with once, such as a template's system prompt, with
            interventions that change each position by itself. It changes numbers by rounding only.

    Returns:
        {site: (N, P, D) float32, or (N, P, V) for logits}, on the CPU, rows in the order given.
    """
    rows: dict[Site, list[Tensor]] = {site: [torch.empty(0)] * len(sequences) for site in sites}
    start, prefix = _beginning(model, sequences, positions, roles) if share else 0, None
    if start:
        prefix = model.prefix(
            sequences[0][:start],
            interventions=interventions,
            roles=None if roles is None else roles[0][:start],
        )
        batch_size = min(batch_size, _ROWS) if model.device.type == "cpu" else batch_size
    for members in _batches(sequences, batch_size):
        union = sorted({at for index in members for at in positions[index]})
        reads = {site: Site(site.layer, site.name, tuple(union)) for site in sites}
        ids = pad_sequence([sequences[index][start:] for index in members], batch_first=True)
        played = None
        if roles is not None:
            played = pad_sequence([roles[index][start:] for index in members], batch_first=True)
        trace = model.trace(
            ids, list(reads.values()), prefix=prefix, interventions=interventions, roles=played
        )
        for site, place in reads.items():
            values = trace[place].float().cpu()
            for row, index in enumerate(members):
                rows[site][index] = values[row, [union.index(at) for at in positions[index]]]
    return {site: torch.stack(values) for site, values in rows.items()}


def _beginning(
    model: Model,
    sequences: Sequence[Tensor],
    positions: Sequence[Sequence[int]],
    roles: Sequence[Tensor] | None,
) -> int:
    """How many positions all sequences begin with, before the first that is read; 0: too few.

    And 0 where the family carries something else from position to position.
    """
    if len(sequences) < 2:
        return 0
    most = min([min(map(len, sequences)) - 1, *(min(at) for at in positions)])
    same = torch.ones(max(0, most), dtype=torch.bool)
    for rows in (sequences, roles or ()):
        for row in rows:
            same &= row[:most] == rows[0][:most]
    start = int(same.long().cumprod(0).sum())
    if start < _SHARED:
        return 0
    try:
        model.checks.prefix()
    except BadInput:
        return 0
    return start


def read(
    model: Model,
    texts: Sequence[Text],
    sites: Sequence[Site],
    *,
    locate: Locate = at_last,
    interventions: Sequence[Change] = (),
    batch_size: int = 64,
    share: bool = False,
) -> dict[Site, Tensor]:
    """`read_at` the tokens that `locate` finds in each text, asked as a plain conversation."""
    prompts = [text if isinstance(text, Prompt) else model.plain(text) for text in texts]
    return read_at(
        model,
        [prompt.ids for prompt in prompts],
        sites,
        [locate(prompt) for prompt in prompts],
        roles=[prompt.roles for prompt in prompts],
        interventions=interventions,
        batch_size=batch_size,
        share=share,
    )


def last_token(
    model: Model,
    texts: Sequence[Text],
    sites: Sequence[Site],
    *,
    interventions: Sequence[Change] = (),
    batch_size: int = 64,
    share: bool = False,
) -> dict[Site, Tensor]:
    """`read` at the last prompt token: {site: (N, D) float32, or (N, V) for logits}."""
    found = read(
        model, texts, sites, interventions=interventions, batch_size=batch_size, share=share
    )
    return {site: values[:, 0] for site, values in found.items()}


def last_of(
    model: Model,
    sequences: Sequence[Tensor],
    sites: Sequence[Site],
    *,
    interventions: Sequence[Change] = (),
) -> dict[Site, Tensor]:
    """`last_token` of sequences of ids, (T,) each."""
    ends = [(len(sequence) - 1,) for sequence in sequences]
    found = read_at(model, sequences, sites, ends, interventions=interventions)
    return {site: values[:, 0] for site, values in found.items()}


@torch.no_grad()
def first_token_kl(model: Model, conversation: Messages, interventions: Sequence[Change]) -> float:
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
    model: Model,
    texts: Sequence[Text],
    *,
    interventions: Sequence[Change] = (),
    share: bool = False,
) -> Tensor:
    """(N, V) log-probabilities of the first token of the answer; `share` as in `read_at`."""
    site = Site(-1, "logits")
    logits = last_token(model, texts, [site], interventions=interventions, share=share)[site]
    return logits.log_softmax(1)
