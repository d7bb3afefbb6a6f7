"""Drawing candidate fillings of the slots."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def top_tokens(gradient: Tensor, current: Tensor, allowed: Tensor, topk: int) -> Tensor:
    """(S, K) ids that the linearised loss likes best in each slot.

    Args:
        gradient: (S, V) of the loss with respect to the one-hot tokens in the slots.
        current: (S,) the tokens there now; never proposed, since they would change nothing.
        allowed: (V,) true for ids that a slot may hold.
        topk: K, cut down to the number of ids left.
    """
    score = -gradient.float()
    score = score.masked_fill(~allowed.to(score.device), float("-inf"))
    score[torch.arange(len(current)), current] = float("-inf")
    available = int(torch.isfinite(score).sum(1).min())
    return score.topk(min(topk, available), dim=1).indices.cpu()


def swap(current: Tensor, choices: Tensor, *, width: int, n_replace: int, rng: Generator) -> Tensor:
    """(width, S) copies of `current` (S,) with `n_replace` distinct slots redrawn in each row.

    The slots are uniform without repetition, the token in each uniform over `choices` (S, K)
    (nanoGCG's sampling; with n_replace=1 that of arXiv 2307.15043, algorithm 1).
    """
    slots = len(current)
    order = torch.rand((width, slots), generator=rng).argsort(1)[:, : min(n_replace, slots)]
    picks = torch.randint(choices.shape[1], order.shape, generator=rng)
    candidates = current.expand(width, slots).clone()
    return candidates.scatter_(1, order, choices[order, picks])


def random_fillings(allowed: Tensor, slots: int, count: int, rng: Generator) -> Tensor:
    """(count, slots) ids, each uniform over all that are allowed (V,)."""
    choices = allowed.nonzero().squeeze(1)
    return choices[torch.randint(len(choices), (count, slots), generator=rng)]


def uniform_choices(current: Tensor, allowed: Tensor) -> Tensor:
    """(S, K) every allowed id in each slot: what the search draws from without a gradient."""
    ids = allowed.nonzero().squeeze(1)
    return ids.expand(len(current), -1)


def ranked_swaps(current: Tensor, choices: Tensor) -> Tensor:
    """(S * K, S) every single swap, best tokens first and slot after slot.

    Row b changes slot b mod S to its token number b // S (Faster-GCG, arXiv 2410.15362, section
    3.2, with the temperature at 0).

    Args:
        current: (S,) the tokens there now.
        choices: (S, K) the tokens of each slot, best first.
    """
    slots, count = choices.shape
    rows = torch.arange(slots * count)
    candidates = current.expand(slots * count, slots).clone()
    candidates[rows, rows % slots] = choices[rows % slots, rows // slots]
    return candidates
