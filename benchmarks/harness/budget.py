"""When a cell is verified, when it has had enough, and when an earlier record answers for it."""

from __future__ import annotations

from benchmarks.storage.records import Record


def verification_due(step: int) -> bool:
    """Whether the best candidate is verified after this step: 1, 2, 4, 8, ...

    A fixed schedule: an attack cannot choose when it is looked at, and the cost of looking grows
    with the logarithm of the steps only.
    """
    return step & (step - 1) == 0


def exhausted(spent: float, budget: float | None) -> bool:
    """Whether `spent` seconds of search and verification use up the budget of a cell."""
    return budget is not None and spent >= budget


def answers(record: Record, budget: float | None) -> bool:
    """Whether a run with `budget` seconds a cell may keep this earlier record.

    Errors are tried again. What a budget stopped is run again once there is more of it.
    """
    if record.status == "ok":
        return True
    if record.status != "budget" or record.budget_seconds is None:
        return False
    return budget is not None and budget <= record.budget_seconds
