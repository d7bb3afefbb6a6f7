"""The study of scaling: what it makes of what it measures."""

from __future__ import annotations

import pytest

from benchmarks.studies.scaling import GPUS, LONG, costs, limits, page
from conftest import ROOT


def test_the_driver_is_full_where_its_time_is_used_up() -> None:
    model = limits({"record": 0.006, "message": 0.004, "record_bytes": 2000.0}, 0.5)
    assert [row["cell"] for row in model] == [0.5, *LONG]
    for row in model:
        # At that many GPUs as many cells end in a second as the driver can take in.
        assert row["most"] / row["cell"] == pytest.approx(100)
        assert row["busy"] == pytest.approx(GPUS / row["most"])
    assert model[2]["records_mb_an_hour"] == pytest.approx(GPUS / 60 * 2000 * 3600 / 1e6)


def test_costs_are_those_of_real_records_and_checkpoints() -> None:
    cost = costs(ROOT / "results" / "pocket-board")
    assert 0 < cost["record"] < 1 and 0 < cost["checkpoint"] < 1
    assert 500 < cost["record_bytes"] < 20_000 and 4000 < cost["checkpoint_bytes"] < 10_000


def test_the_page_has_a_row_for_each_run_and_length() -> None:
    cost = {"record": 0.006, "record_bytes": 2000.0, "checkpoint": 0.001, "checkpoint_bytes": 10.0}
    run = {"engine": "ray", "run": "1 worker", "cells": 8, "seconds": 9.0, "start": 3.0}
    text = page([run | {"rate": 1.0, "efficiency": 1.0}], cost, limits(cost, 1.0))
    assert "| ray | 1 worker | 8 | 9.0 | 3.0 | 1.00 |" in text
    assert [text.count(f"\n| {seconds} |") for seconds in ("1", "10", "60", "600")] == [1] * 4
