"""Why a cell has no result, in one line."""

from __future__ import annotations

from typing import NamedTuple

import torch

from attacks.core.errors import BadInput
from benchmarks.common.lines import one_line
from benchmarks.storage.records import Status


class Failure(NamedTuple):
    """Why a cell has no result."""

    status: Status
    reason: str
    """One line."""


#: What may go wrong inside a cell and ends no run: an attack that calls `exit` is at fault too.
CONTAINED = (Exception, SystemExit, GeneratorExit)


def failure_of(error: BaseException) -> Failure:
    """The status and the one-line reason for an exception inside a cell."""
    out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and any(sign in str(error).lower() for sign in ("out of memory", "can't allocate memory"))
    )
    text = one_line(str(error))[:300]
    if not isinstance(error, BadInput):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return Failure("out_of_memory" if out_of_memory else "error", text)
