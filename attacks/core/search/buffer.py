"""The candidates worth keeping, best first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True, eq=False)
class Buffer:
    """Distinct candidates (N, S) with their losses (N,), ascending; at most `capacity` of them."""

    ids: Tensor
    losses: Tensor
    capacity: int

    @classmethod
    def empty(cls, slots: int, capacity: int) -> Buffer:
        """A buffer without candidates."""
        return cls(torch.empty((0, slots), dtype=torch.int64), torch.empty(0), capacity)

    def add(self, ids: Tensor, losses: Tensor) -> Buffer:
        """The best of this buffer and of `ids` (B, S) with `losses` (B,).

        Ties keep the earlier candidate, so that the order does not depend on the sort used.
        """
        all_ids = torch.cat([self.ids, ids])
        all_losses = torch.cat([self.losses, losses])
        kept: list[int] = []
        seen: set[tuple[int, ...]] = set()
        for index in all_losses.argsort(stable=True).tolist():
            row = tuple(all_ids[index].tolist())
            if row not in seen:
                seen.add(row)
                kept.append(index)
                if len(kept) == self.capacity:
                    break
        return Buffer(all_ids[kept], all_losses[kept], self.capacity)

    def jumped(self, rng: Generator) -> Buffer:
        """This buffer from an entry on that is drawn with probability softmax(-loss).

        The entries before it are left behind (arXiv 2503.06269; drawing the first leaves all).
        """
        chances = (-self.losses.double()).softmax(0)
        start = int(torch.multinomial(chances, 1, generator=rng))
        return Buffer(self.ids[start:], self.losses[start:], self.capacity)
