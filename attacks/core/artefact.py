"""What an attack fits on training prompts: named tensors and JSON data, with their cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Artefact:
    """A fitted value. `hash` covers the content and not the cost."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    """JSON values only."""
    seconds: float = 0.0
    """What fitting it took, filled in by the harness."""

    @cached_property
    def hash(self) -> str:
        """Hex digest of names, shapes, dtypes, values and data."""
        digest = hashlib.sha256(json.dumps(self.data, sort_keys=True).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name].detach().cpu().contiguous()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.float().numpy().tobytes())
        return digest.hexdigest()[:16]


EMPTY = Artefact()
