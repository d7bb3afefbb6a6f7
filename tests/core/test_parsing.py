"""Values that are nested as deeply as they may be, and one deeper."""

from __future__ import annotations

import pytest

from attacks.core.parsing import DEEPEST, from_json, from_toml


@pytest.mark.parametrize(("opening", "inmost", "closing"), [("[", "", "]"), ('{"a":', "1", "}")])
def test_how_deep_a_value_may_be(opening: str, inmost: str, closing: str) -> None:
    def nested(depth: int) -> str:
        return opening * depth + inmost + closing * depth

    assert from_json(nested(DEEPEST)) and from_json(f"[{nested(3)}, 2]")[1] == 2
    for depth in (DEEPEST + 1, 10_000):
        with pytest.raises(ValueError, match=f"nested more than {DEEPEST} deep"):
            from_json(nested(depth))
        with pytest.raises(ValueError, match="nested more than"):
            from_toml(f"a = {nested(depth)}".replace(":", "="))
