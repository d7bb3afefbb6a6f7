"""Ranks on boards: who is ranked with whom, and how firmly."""

from __future__ import annotations

from pathlib import Path

from test_leaderboard import _record, _run

from benchmarks.boards.leaderboard import render


def test_ranks_are_among_the_attacks_on_one_model_and_board(tmp_path: Path) -> None:
    """Eight requests: one attack always succeeds, one on half of them, one never; one is alone."""
    cells = []
    for model, attack, succeeds, more in [
        ("a", "direct", 8, {}),
        ("a", "gcg", 8, {}),
        ("a", "ssr", 4, {}),
        ("a", "tie", 4, {}),
        ("a", "none", 0, {}),
        ("b", "gcg", 8, {}),
        ("a", "quick", 8, {"stop": "first-success"}),
        ("a", "other", 8, {"stop": "first-success"}),
    ]:
        told = {"model": model, "attack": attack, "attack_hash": attack, **more}
        for at in range(8):
            cells.append((_record(at, **told), ("knows" if at < succeeds else "refused",)))
    rows = {(row.model, row.attack): row for row in _run(tmp_path, cells)}
    found = {key: (row.rank, row.rank_low, row.rank_high) for key, row in rows.items()}
    assert found["a", "gcg"] == (1, 1, 1)
    # Equal on every request, and so in every resample. They equal the best in one of 256 only, and
    # the worst in as many.
    assert found["a", "ssr"] == found["a", "tie"] == (2, 2, 2)
    assert found["a", "none"] == (4, 4, 4)
    for unranked in (("a", "direct"), ("b", "gcg"), ("a", "quick"), ("a", "other")):
        assert found[unranked] == (None, None, None)
    page = render(list(rows.values()), "md")
    (line,) = (line for line in page.splitlines() if line.startswith("| a | ssr |"))
    assert "| 2 [2, 2] |" in line and "**Rank**" in page


def test_ranks_are_of_the_requests_that_all_share(tmp_path: Path) -> None:
    cells = [(_record(at, attack_hash="long"), ("refused",)) for at in range(4)]
    cells += [(_record(at, attack_hash="short"), ("knows",)) for at in range(2)]
    cells += [(_record(at, attack_hash="third"), ("knows",)) for at in (2, 3)]
    assert {row.rank for row in _run(tmp_path / "apart", cells)} == {None}
    ranks = {row.attack_hash: row.rank for row in _run(tmp_path / "shared", cells[:-2])}
    assert ranks == {"long": 2, "short": 1}
