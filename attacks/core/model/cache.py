"""Keys and values of a shared beginning, computed once and shared by every batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True, eq=False)
class Prefix:
    """Per-layer keys and values (1, H, P, d) of the first P positions."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    length: int

    @classmethod
    def of(cls, cache: DynamicCache) -> Prefix:
        """What `cache` holds now."""
        held: list[Any] = list(cache.layers)
        layers = tuple((layer.keys, layer.values) for layer in held)
        return cls(layers, layers[0][0].shape[2])

    def until(self, length: int) -> Prefix:
        """The first `length` positions of it, as views."""
        layers = [(keys[:, :, :length], values[:, :, :length]) for keys, values in self.layers]
        return Prefix(tuple(layers), length)

    def expanded(self, rows: int) -> DynamicCache:
        """A fresh cache for `rows` sequences: views, no copies.

        Made without a configuration it keeps all keys in sliding-window layers too, which is what
        makes slicing and expanding it exact there; a forward pass extends only this fresh object.
        """
        return DynamicCache(
            [
                (keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1))
                for keys, values in self.layers
            ]
        )
