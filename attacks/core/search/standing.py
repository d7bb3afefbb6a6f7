"""Where a coordinate search stands between two steps, and its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from attacks.core.search.buffer import Buffer
from attacks.core.search.moves import Seen

if TYPE_CHECKING:
    from attacks.core.state import State


@dataclass(frozen=True, eq=False)
class Standing:
    """All that a search needs to go on, beside the generator."""

    pool: Buffer
    """What it goes on from."""
    best: Buffer
    """The best fillings seen."""
    initial: float
    """Loss of the start."""
    n_replace: int
    stale: int = 0
    """Steps since the pool's best got better."""
    step: int = 0
    average: Tensor | None = None
    """(S, V) of the gradients so far, with momentum."""
    seen: Seen | None = None
    """What has been evaluated, where nothing is to be evaluated twice."""


_NUMBERS = ("initial", "n_replace", "stale", "step")


def checkpoint(at: Standing, rng: Generator) -> State:
    """Named tensors and numbers; those of an option are there where it is in use."""
    options = {"average": at.average, "seen_ids": at.seen.ids if at.seen else None}
    return {
        "pool_ids": at.pool.ids,
        "pool_losses": at.pool.losses,
        "best_ids": at.best.ids,
        "best_losses": at.best.losses,
        **{name: tensor.cpu() for name, tensor in options.items() if tensor is not None},
        **{name: getattr(at, name) for name in _NUMBERS},
        "generator": rng.get_state(),
    }


def restore(state: State, capacity: int, keep: int, rng: Generator) -> Standing:
    """Where the search stood at a checkpoint; `rng` is set to where it was then."""
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    rng.set_state(tensors["generator"])
    return Standing(
        Buffer(tensors["pool_ids"], tensors["pool_losses"], capacity),
        Buffer(tensors["best_ids"], tensors["best_losses"], keep),
        initial=float(state["initial"]),
        n_replace=int(state["n_replace"]),
        stale=int(state["stale"]),
        step=int(state["step"]),
        average=tensors.get("average"),
        seen=Seen(tensors["seen_ids"]) if "seen_ids" in tensors else None,
    )
