"""How many threads one process computes with: fixed by the model, never by the number of workers.

Splitting a sum over threads can change its rounding, and one flipped bit can send a search another
way; so records could depend on `--workers` if the workers shared the cores out among themselves.
Small models run on one thread, which is also fastest when several processes share the cores (two
threads on two busy cores measured 5 to 15 times slower). Larger ones keep torch's own number, or
that of OMP_NUM_THREADS, in every process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from attacks.core.model import Model

#: Parameters up to which a model's matrix products are too small to gain much from more threads.
SMALL = 50_000_000


def threads_for(model: Model) -> int:
    """Threads of one operation, for this model."""
    small = sum(parameter.numel() for parameter in model.hf.parameters()) <= SMALL
    return 1 if small else torch.get_num_threads()


@contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """Computes on `count` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
