"""Activations and next-token distributions at chosen tokens of plain prompts, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from attacks.core.errors import BadInput
from attacks.core.prompt import INSTRUCTION, POST_INSTRUCTION, Prompt
from attacks.core.sites import Site
from attacks.core.weights import Change

if TYPE_CHECKING:
    from attacks.core.model import Model

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


def _batches(prompts: Sequence[Prompt], batch_size: int) -> Iterator[list[int]]:
    """Indices of prompts of like length."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@torch.no_grad()
def read(
    model: Model,
    texts: Sequence[Text],
    sites: Sequence[Site],
    *,
    locate: Locate = at_last,
    interventions: Sequence[Change] = (),
    batch_size: int = 64,
) -> dict[Site, Tensor]:
    """Activations at some tokens of each text, asked as a plain conversation.

    Shorter prompts of a batch are filled up at the end, where causal attention keeps what is there
    from what comes before it. The positions of `sites` are not used.

    Returns:
        {site: (N, P, D) float32, or (N, P, V) for logits}, on the CPU, rows in the order of
        `texts`.
    """
    prompts = [text if isinstance(text, Prompt) else model.plain(text) for text in texts]
    rows: dict[Site, list[Tensor]] = {site: [torch.empty(0)] * len(prompts) for site in sites}
    for members in _batches(prompts, batch_size):
        wanted = [tuple(locate(prompts[index])) for index in members]
        union = sorted({position for positions in wanted for position in positions})
        reads = {site: Site(site.layer, site.name, tuple(union)) for site in sites}
        ids, roles = (
            torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
            for values in ([prompts[i].ids for i in members], [prompts[i].roles for i in members])
        )
        trace = model.trace(ids, list(reads.values()), interventions=interventions, roles=roles)
        for site, place in reads.items():
            values = trace[place].float().cpu()
            for row, index in enumerate(members):
                rows[site][index] = values[row, [union.index(at) for at in wanted[row]]]
    return {site: torch.stack(values) for site, values in rows.items()}


def last_token(
    model: Model,
    texts: Sequence[Text],
    sites: Sequence[Site],
    *,
    interventions: Sequence[Change] = (),
    batch_size: int = 64,
) -> dict[Site, Tensor]:
    """`read` at the last prompt token: {site: (N, D) float32, or (N, V) for logits}."""
    found = read(model, texts, sites, interventions=interventions, batch_size=batch_size)
    return {site: values[:, 0] for site, values in found.items()}


def next_token_log_probs(
    model: Model, texts: Sequence[Text], *, interventions: Sequence[Change] = ()
) -> Tensor:
    """(N, V) log-probabilities of the first token of the answer."""
    site = Site(-1, "logits")
    logits = last_token(model, texts, [site], interventions=interventions)[site]
    return logits.log_softmax(1)
