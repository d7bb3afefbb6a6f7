"""Hostile inputs, and what the command line may make of them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from benchmarks.cli import main

#: Inputs of each kind.
EXAMPLES = int(os.environ.get("REROUTE_FUZZ", "40"))
HOSTILE = (
    "\x1b[31mred\x1b[0m",
    "a\nb\r\nc",
    "=1+1",
    "@cmd",
    "| x | y |",
    "<script>alert(1)</script>",
    "[link](javascript:alert(1))",
    "\u202eevil",
    "\x9b31mred",
    "../../etc/passwd",
    "\x00",
    "{{ 7*7 }}",
    "",
    "\ud800",
    "direct",
    "pocket-llama",
)
some_text = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    some_text,
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(some_text, inner, max_size=3)
    ),
    max_leaves=6,
)
often = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def told(*argv: str) -> tuple[int, str]:
    """Exit code and output of a command, whose complaints are one clean line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(argv))
    shown = err.getvalue()
    assert code in (0, 1, 2), shown
    if code == 2:
        line = shown.strip().splitlines()[-1]
        assert line.startswith("reroute: ") and "Traceback" not in shown
    for stream in (shown, out.getvalue()):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", stream), (
            stream
        )
    return code, out.getvalue()


def dumped(value: Any) -> str:
    """JSON, also of what is none: a lone surrogate, NaN."""
    return json.dumps(value)


def mutated(data: bytes, edits: list[tuple[float, int]]) -> bytes:
    """Bytes changed at shares of the length; the last edit may cut the rest off."""
    found = bytearray(data)
    for place, byte in edits:
        at = int(place * max(len(found) - 1, 0))
        if byte > 255:
            del found[at:]
        elif found:
            found[at] = byte
    return bytes(found)


edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 259)), min_size=1, max_size=6)
