"""Which experts a behaviour uses: activation maps, relevance, and whether it can be chance.

Functional token resonance imaging, arXiv 2502.11096: maps of how often each expert is chosen while
a prompt is read, their contrast between labels of the model's answer, and the experts at its top.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from scipy.stats import spearmanr
from torch import Generator, Tensor

from attacks.core.answer import silent
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.gating import Expert
from attacks.core.reading.answers import answers
from attacks.core.reading.states import equal_lengths
from attacks.core.refusals.openers import learn_openers, opener_tokens, opens_with_refusal
from attacks.core.sites import Site

if TYPE_CHECKING:
    from attacks.core.model import Model


@torch.no_grad()
def activation_maps(model: Model, texts: Sequence[str], *, batch_size: int = 64) -> Tensor:
    """(N, M, E) share of each prompt's tokens that are routed to each expert.

    Only the pass over the prompt counts, asked as a plain conversation, in batches of equal length
    and so without padding. The M blocks with experts are `model.structure.expert_layers`. Shares
    of a block sum to the number of experts that a token has.

    Raises:
        BadInput: a dense model, or a family whose router is not known.
    """
    layers = expert_layers(model)
    prompts = [model.plain(text) for text in texts]
    maps: list[Tensor] = [torch.empty(0)] * len(prompts)
    for members in equal_lengths(prompts, batch_size):
        positions = tuple(range(len(prompts[members[0]].ids)))
        reads = [Site(layer, "gates", positions) for layer in layers]
        trace = model.trace(torch.stack([prompts[index].ids for index in members]), reads)
        shares = [(trace[site] > 0).double().mean(1) for site in reads]
        for index, rows in zip(members, torch.stack(shares, 1).cpu(), strict=True):
            maps[index] = rows
    return torch.stack(maps)


def expert_layers(model: Model) -> tuple[int, ...]:
    """The blocks whose MLP is a mixture of experts.

    Raises:
        BadInput: there are none.
    """
    layers = model.structure.expert_layers
    if not layers:
        raise BadInput(
            f"model '{model.name}' ({model.structure.family}) has no experts: this needs a mixture "
            "of experts, such as OLMoE, Qwen-MoE or Mixtral"
        )
    return layers


def answer_labels(model: Model, train: Sequence[Behavior]) -> Tensor:
    """(N,) true where what the model itself says, after any thinking, opens with a refusal.

    An answer that ends before anything is said counts as one.

    Raises:
        BadInput: fewer than two refusals or two answers, so nothing can be contrasted.
    """
    openers = learn_openers(model, train)
    said = answers(model, [behavior.text for behavior in train], tokens=opener_tokens(openers))
    refused = torch.tensor(
        [silent(answer) or opens_with_refusal(answer, openers) for answer in said]
    )
    if not 2 <= int(refused.sum()) <= len(refused) - 2:
        raise BadInput(
            f"model '{model.name}' refuses {int(refused.sum())} of {len(refused)} training "
            "prompts; experts are found by comparing refusals with answers, so both are needed"
        )
    return refused


def relevance(maps: Tensor, labels: Tensor) -> Tensor:
    """(M, E) mean map under the label less the mean map of the rest.

    Args:
        maps: (N, M, E)
        labels: (N,) bool
    """
    return maps[labels].mean(0) - maps[~labels].mean(0)


def ranking(values: Tensor, layers: Sequence[int]) -> list[Expert]:
    """All experts, the largest of `values` (M, E) first; ties in order of block and index."""
    order = values.flatten().argsort(descending=True, stable=True).tolist()
    width = values.shape[1]
    return [Expert(layers[at // width], at % width) for at in order]


def permutation_test(maps: Tensor, labels: Tensor, *, draws: int, rng: Generator) -> Tensor:
    """(M, E) p-value of each expert's relevance under shuffled labels, for all experts at once.

    An expert is held against the largest relevance of any expert in each shuffle (Westfall and
    Young's maximum statistic), so however many experts there are, the chance that any p-value at
    all comes out below 0.05 without a cause is 0.05.

    Args:
        maps: (N, M, E)
        labels: (N,) bool
        draws: shuffles.
        rng: shuffles the labels.
    """
    flat, wanted = maps.flatten(1), int(labels.sum())
    shuffled = torch.stack([torch.randperm(len(labels), generator=rng) for _ in range(draws)])
    chosen = torch.zeros(draws, len(labels), dtype=flat.dtype)
    chosen.scatter_(1, shuffled[:, :wanted], 1.0)
    inside = chosen @ flat / wanted
    outside = (1 - chosen) @ flat / (len(labels) - wanted)
    largest = (inside - outside).amax(1)
    observed = relevance(maps, labels)
    exceed = (largest[:, None, None] >= observed).sum(0)
    return (exceed + 1) / (draws + 1)


def split_half(maps: Tensor, labels: Tensor, *, splits: int, rng: Generator) -> float:
    """Spearman correlation of the relevances in two halves of the prompts, mean over splits.

    Each half has half of the prompts of each label; `maps` (N, M, E), `labels` (N,) bool.
    """
    values = []
    for _ in range(splits):
        first = torch.zeros_like(labels)
        for members in (labels.nonzero()[:, 0], (~labels).nonzero()[:, 0]):
            order = torch.randperm(len(members), generator=rng)
            first[members[order[: len(members) // 2]]] = True
        halves = [relevance(maps[half], labels[half]).flatten() for half in (first, ~first)]
        values.append(float(spearmanr(*halves).statistic))
    return sum(values) / len(values)
