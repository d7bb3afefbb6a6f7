"""Keys and values of a shared beginning, computed once and shared by every batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True, eq=False)
class Prefix:
    """Per-layer keys and values (R, H, P, d) of the first P positions, of one sequence or of R."""

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

    def detached(self) -> Prefix:
        """It without the graph of a gradient."""
        return Prefix(tuple((k.detach(), v.detach()) for k, v in self.layers), self.length)

    def take(self, rows: Tensor) -> Prefix:
        """Copies of the sequences `rows` (N,) of it."""
        at = rows.to(self.layers[0][0].device)
        layers = tuple((k.index_select(0, at), v.index_select(0, at)) for k, v in self.layers)
        return Prefix(layers, self.length)

    @classmethod
    def joined(cls, parts: Sequence[Prefix]) -> Prefix:
        """The sequences of all `parts`, which are equally long, one after the other."""
        if len(parts) == 1:
            return parts[0]
        layers = zip(*(part.layers for part in parts), strict=True)
        return cls(
            tuple(
                (torch.cat([k for k, _ in each]), torch.cat([v for _, v in each]))
                for each in layers
            ),
            parts[0].length,
        )

    def expanded(self, rows: int, *, kept: bool = True) -> DynamicCache:
        """A fresh cache for `rows` sequences, as many as it holds or copies of one: views only.

        Made without a configuration it keeps all keys in sliding-window layers too, which is what
        makes slicing and expanding it exact there; a forward pass extends only this fresh object,
        and not even this where what it adds is not `kept`.
        """
        cache = DynamicCache()
        cache.layers = [
            _Layer(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), kept)
            for keys, values in self.layers
        ]
        return cache


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Begins with keys and values (R, H, P, d) as they are; transformers' own layer copies them."""

    def __init__(self, keys: Tensor, values: Tensor, kept: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys: Any = keys
        self.values: Any = values
        self._kept = kept

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """All keys and values, those of the positions of a pass (R, H, T, d) at the end."""
        keys = torch.cat([self.keys, key_states], dim=2)
        values = torch.cat([self.values, value_states], dim=2)
        if self._kept:
            self.keys, self.values = keys, values
        return keys, values


class Part(NamedTuple):
    """Some of the sequences of a pass, and the cache that they bring along."""

    rows: slice
    cache: DynamicCache | None

    @property
    def past(self) -> int:
        """Positions in the cache."""
        return self.cache.get_seq_length() if self.cache else 0

    @property
    def kept(self) -> bool:
        """Whether what a pass adds is kept."""
        held: list[Any] = self.cache.layers if self.cache is not None else []
        return self.cache is not None and all(getattr(layer, "_kept", True) for layer in held)


def joined(parts: Sequence[Part], n_layers: int) -> DynamicCache | None:
    """One cache for all sequences, each with what its part holds; the shorter are padded before.

    None where no part has a cache. After the pass, `handed_out` gives each part what is its own.
    """
    if all(part.cache is None for part in parts):
        return None
    past, kept = max(part.past for part in parts), any(part.kept for part in parts)
    cache = DynamicCache()
    cache.layers = [_Joint(parts, at, past, kept) for at in range(n_layers)]
    return cache


def handed_out(cache: DynamicCache | None, parts: Sequence[Part], new: Sequence[int]) -> None:
    """Extend the caches of the parts that keep them by their own `new` positions, as views."""
    joint: list[Any] = cache.layers if cache is not None else []
    for part, length in zip(parts, new, strict=True):
        if part.cache is None or not part.kept:
            continue
        held: list[Any] = list(part.cache.layers)
        past = part.past
        layers: list[Any] = []
        for at, layer in enumerate(joint):
            if layer.keys is not None:
                first, end = layer.past - past, layer.past + length
                keys, values = (t[part.rows, :, first:end] for t in (layer.keys, layer.values))
                layers.append(_Layer(keys, values, True))
            elif at < len(held):
                layers.append(held[at])  # The pass ended before it.
        part.cache.layers = layers


class _Joint(DynamicLayer):  # type: ignore[no-untyped-call]
    """Holds nothing until a pass adds to it: then all sequences, those of a part padded alike."""

    def __init__(self, parts: Sequence[Part], at: int, past: int, kept: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_initialized = True
        self.past = past
        self._kept = kept
        self._held: list[tuple[slice, Any]] = [
            (part.rows, part.cache.layers[at])
            for part in parts
            if part.cache is not None and at < len(part.cache.layers)
        ]

    def get_seq_length(self) -> int:
        return self.past

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """All keys and values, those of the positions of a pass (R, H, T, d) at the end."""
        keys = self._filled(key_states, [(rows, layer.keys) for rows, layer in self._held])
        values = self._filled(value_states, [(rows, layer.values) for rows, layer in self._held])
        if self._kept:
            self.keys, self.values = keys, values
        return keys, values

    def _filled(self, new: Tensor, held: Sequence[tuple[slice, Tensor]]) -> Tensor:
        rows, heads, length, width = new.shape
        whole = new.new_zeros(rows, heads, self.past + length, width)
        whole[:, :, self.past :] = new
        for place, own in held:
            whole[place, :, self.past - own.shape[2] : self.past] = own
        return whole
