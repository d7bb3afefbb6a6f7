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
    """A fitted value. `hash` covers the content, not its cost nor its check."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """By names of the attack's own."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """JSON values only."""
    seconds: float = 0.0
    """What fitting it took, filled in by the harness."""
    check: Mapping[str, Any] = field(default_factory=dict)
    """What was found on held-out prompts, JSON values: `verdict` ("good" or "failed"), `faults`
    (why, in words) and figures (`verdicts.Check`). Empty where nothing was checked. It changes
    nothing that an attack does, and so is not in the hash."""

    @cached_property
    def hash(self) -> str:
        """Hex digest of names, shapes, dtypes, values and data."""
        digest = hashlib.sha256(json.dumps(self.data, sort_keys=True).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name].detach().cpu().contiguous()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.float().numpy().tobytes())
        return digest.hexdigest()[:16]


def join_checks(checks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The checks of several parts, by name, as one: failed if one of them is; notes are kept."""
    if not checks:
        return {}
    faults = [f"{name}: {fault}" for name, one in checks.items() for fault in one["faults"]]
    notes = [f"{name}: {note}" for name, one in checks.items() for note in one.get("notes", ())]
    return {
        "verdict": "failed" if faults else "good",
        "faults": faults,
        **({"notes": notes} if notes else {}),
        "parts": dict(checks),
    }


EMPTY = Artefact()
