"""The study of where a step's time goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.studies.operations import ROWS, kind_of, main, shares


def test_operations_have_their_kinds() -> None:
    told = {
        "aten::mm": "matrix products",
        "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
        "aten::copy_": "indexing, joining and copying",
        "aten::unique_dim": "sampling and sorting",
        "aten::_unsafe_view": "views and allocation",
        "MmBackward0": "views and allocation",
        "tokenizer": "the filter's tokenizer",
        "aten::silu_": "elementwise, norms and reductions",
    }
    assert {name: kind_of(name) for name in told} == told
    found = shares([("aten::mm", 2.0), ("aten::bmm", 1.0), ("aten::add", 1.0)], 8.0)
    assert found["matrix products"] == 0.375 and found["Python and the rest"] == 0.5


def test_the_table_accounts_for_a_whole_step(tmp_path: Path) -> None:
    main(["--shape", "pocket", "--threads", "1", "--steps", "1", "--out", str(tmp_path)])
    (column,) = json.loads((tmp_path / "operations.json").read_text())["columns"].values()
    assert sum(column["shares"].values()) == pytest.approx(1)
    assert all(column["shares"][kind] > 0 for kind in ROWS)
    assert column["flops"] > 1e9
    written = (tmp_path / "operations.md").read_text()
    assert all(f"| {kind} | {share:.3f} |" in written for kind, share in column["shares"].items())
