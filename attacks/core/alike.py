"""Whether two changes to a model are the same one."""

from __future__ import annotations

import dataclasses

import torch


def same(one: object, other: object) -> bool:
    """Equality that looks into tensors, tuples and dataclasses."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one is other or torch.equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        names = [entry.name for entry in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    return one is other or bool(one == other)
