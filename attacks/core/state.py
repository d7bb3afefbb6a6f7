"""What a search goes on from: the checkpoint that attacks, searches and the harness pass on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor

State: TypeAlias = Mapping[str, Tensor | int | float]
"""A checkpoint: named tensors and numbers, enough to go on bit-identically."""
