"""Which candidates to run together, so that what they share is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """Candidates that agree with the common filling before a position."""

    rows: Tensor
    """(N,) int64 indices of the candidates."""
    start: int
    """Where their own part begins: everything before it is the common filling's."""


def common_filling(candidates: Tensor) -> Tensor:
    """(S,) the commonest token of each slot among the candidates (B, S).

    Candidates of a search differ from the filling that it stands at in a slot or two, so this is
    that filling; for candidates without one it is as good as any other.
    """
    filling: Tensor = candidates.mode(dim=0).values
    return filling


def first_change(candidates: Tensor, filling: Tensor) -> Tensor:
    """(B,) the first slot in which each candidate (B, S) differs; S for one that does not."""
    changed = candidates != filling
    return torch.where(changed.any(1), changed.int().argmax(1), candidates.shape[1])


def groups(
    candidates: Tensor,
    filling: Tensor,
    slots: Sequence[int],
    *,
    start: int,
    stop: int,
    end: int,
    overhead: float,
) -> list[Group]:
    """The cheapest way to run the candidates, in passes that each share a beginning.

    A pass over N candidates costs N positions for each of those from its start to `end`, and
    `overhead` positions for being a pass of its own; each start but the first also needs the keys
    and values of the common filling, computed once for all.

    Args:
        candidates: (B, S)
        filling: (S,) the common one.
        slots: (S,) their positions, ascending.
        start: the first position that is not computed already.
        stop: no pass may start after this position, the first one that is read.
        end: positions that a pass runs to.
        overhead: of one more pass, in positions of one sequence.

    Returns:
        Groups with ascending starts; each candidate is in one.
    """
    places = torch.tensor([*slots, end])
    begins = places[first_change(candidates, filling)].clamp(max=stop)
    starts = sorted({start, *begins.tolist()})
    counts = [int((begins == at).sum()) for at in starts]
    chosen = partition(starts, counts, end, overhead)
    cost = sum(
        sum(counts[at:until]) * (end - starts[at]) + overhead
        for at, until in pairwise([*chosen, len(starts)])
    )
    alone = len(candidates) * (end - start) + overhead
    if cost + overhead + starts[chosen[-1]] >= alone:
        chosen = [0]  # The pass over the common filling would cost more than is saved.
    edges = [*(starts[at] for at in chosen[1:]), end + 1]
    found, low = [], -1
    for at, edge in zip(chosen, edges, strict=True):
        rows = ((begins > low) & (begins < edge)).nonzero().squeeze(1)
        if len(rows):
            found.append(Group(rows, starts[at]))
        low = edge - 1
    return found


def partition(starts: Sequence[int], counts: Sequence[int], end: int, overhead: float) -> list[int]:
    """Indices into `starts` at which passes begin, the first one included, at the least cost."""
    n = len(starts)
    # best[i]: the least cost of the candidates from start i on, if a pass begins there.
    best, follower = [0.0] * (n + 1), [n] * (n + 1)
    for i in reversed(range(n)):
        best[i] = float("inf")
        rows = 0
        for j in range(i + 1, n + 1):
            rows += counts[j - 1]
            cost = rows * (end - starts[i]) + overhead + best[j]
            if cost < best[i]:
                best[i], follower[i] = cost, j
    chosen, at = [], 0
    while at < n:
        chosen.append(at)
        at = follower[at]
    return chosen
