"""Losses in two parts: an opening that bounds the loss from below, and the rest for the best.

A search goes on from the lowest losses only. The first tokens of a target often show that a
candidate is not among them, so its other positions need not be computed: branch and bound, which
finds the same lowest losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attacks.core.objectives import Bound
from attacks.core.sites import Site, Trace

#: More blocks than any model has: `logits` come after all of them.
_DEEPEST = 10**6

if TYPE_CHECKING:
    from attacks.core.model.cache import Prefix


@dataclass(frozen=True, eq=False)
class Halves:
    """What an objective reads, cut in two after the last position that its opening reads."""

    opening: Bound
    end: int
    """The first position after the cut."""
    heads: dict[Site, Site]
    """What is read before the cut, by the site that it is part of."""
    tails: dict[Site, Site]

    @classmethod
    def of(cls, objective: Bound) -> Halves | None:
        """None where the objective has no opening, or one that does not fit.

        It fits if the objective reads more after it, all that the opening reads before the cut, and
        nothing deeper after the cut than before, whose keys and values would be missing.
        """
        opening = objective.opening
        if opening is None:
            return None
        end = 1 + max(p for site in opening.reads for p in site.positions)
        heads, tails = {}, {}
        for site in objective.reads:
            early = tuple(p for p in site.positions if p < end)
            late = site.positions[len(early) :]
            if early:
                heads[site] = Site(site.layer, site.name, early)
            if late:
                tails[site] = Site(site.layer, site.name, late)
            if early + late != tuple(sorted(site.positions)):
                return None
        fits = set(opening.reads) <= set(heads.values()) and tails
        depth = [max(s.depth(_DEEPEST) for s in half) for half in (heads, tails) if half]
        return cls(opening, end, heads, tails) if fits and depth[0] >= depth[1] else None

    def head_of(self, trace: Trace) -> Trace:
        """What is read before the cut, from all that the objective reads."""
        return {head: trace[site][:, : len(head.positions)] for site, head in self.heads.items()}

    def joined(self, head: Trace, tail: Trace) -> Trace:
        """What the objective reads, (B, ...), from what was read before and after the cut."""
        both: Trace = {}
        for site in {**self.heads, **self.tails}:
            parts = [
                t[half[site]]
                for t, half in ((head, self.heads), (tail, self.tails))
                if site in half
            ]
            both[site] = torch.cat(parts, dim=1)
        return both


@dataclass(frozen=True, eq=False)
class Begun:
    """Candidates that were run up to the cut together."""

    rows: Tensor
    """(N,) which of all candidates they are."""
    trace: Trace
    """{site: (N, ...)} at the heads."""
    keys: Prefix
    """Keys and values of N sequences."""

    def take(self, rows: Tensor) -> Begun:
        """Those of them that are among `rows` (M,)."""
        at = torch.isin(self.rows, rows).nonzero().squeeze(1)
        trace = {site: value[at.to(value.device)] for site, value in self.trace.items()}
        return Begun(self.rows[at], trace, self.keys.take(at))

    @classmethod
    def joined(cls, parts: Sequence[Begun]) -> Begun:
        """All of `parts` as one."""
        rows = torch.cat([part.rows for part in parts])
        trace = {site: torch.cat([part.trace[site] for part in parts]) for site in parts[0].trace}
        return cls(rows, trace, parts[0].keys.joined([part.keys for part in parts]))
