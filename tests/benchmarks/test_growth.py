"""The study of how a step's cost grows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.studies.growth import SWEEPS, Setting, exponent, page


def test_the_exponent_of_a_power_is_found() -> None:
    slope, error = exponent([1, 2, 4, 8], [3, 12, 48, 192])
    assert (slope, error) == (pytest.approx(2.0), pytest.approx(0.0, abs=1e-6))


def test_flops_of_blocks_grow_with_their_number(tmp_path: Path) -> None:
    setting = Setting(slots=6, candidates=32, before=8, layers=1, width=32, vocabulary=512)
    flops = [replace(setting, layers=n).step(tmp_path, 3)[1] for n in (1, 3, 5)]
    # Candidates that come twice are computed once, and how many do depends on the weights.
    assert flops[2] - flops[1] == pytest.approx(flops[1] - flops[0], rel=0.15)
    assert flops[1] - flops[0] > 0.5 * flops[0]


def test_the_page_has_a_row_for_each_number() -> None:
    rows = [
        {"number": name, "value": value, "seconds": value * 0.01, "flops": value**2}
        for name, values in SWEEPS.items()
        for value in values
    ]
    shown = page(rows)
    for name in SWEEPS:
        assert f"| {name} |" in shown
    assert shown.count("1.00 ± 0.00 | 2.00 ± 0.00") == len(SWEEPS)
