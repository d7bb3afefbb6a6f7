"""Hostile packages: what they say of themselves goes to terminals, tables and shells."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from fuzzing import often, some_text, told, values
from hypothesis import given
from hypothesis import strategies as st

_number = itertools.count()

SOURCE = """
from dataclasses import dataclass, field
from typing import ClassVar
from attacks.attack import Attack, ThreatModel
LOOP = LOOP

@dataclass(frozen=True)
class Plug({base}):
    {doc}
    name: ClassVar[str] = "plug"
    {summary}
    threat_model: ClassVar[ThreatModel] = ThreatModel.PROMPT
    steps: {kind} = {default}
    {about}
    def run(self, *args, **more): pass
"""

text = st.one_of(some_text, some_text.map(lambda text: text * 300)).map(ascii)
literals = st.one_of(
    values.map(ascii),
    st.sampled_from(
        [
            *("1/0", "'a' + 1", "1j", "b'x'", "...", "{(1, 2): 3}", "1e999", "LOOP", "nothing"),
            *("[" * 90 + "]" * 90, "-" * 300 + "1", "+".join("1" * 3000), "exit(3)", "open('/x')"),
            "field(default_factory=lambda: LOOP)",
        ]
    ),
)


@contextlib.contextmanager
def installed(folder: Path, name: str, target: str, source: str) -> Iterator[str]:
    """A package with this entry point, as an installation leaves it; the name of its module."""
    module = f"hostile_{os.getpid()}_{next(_number)}"
    place = folder / module
    about = place / f"{module}-1.0.dist-info"
    about.mkdir(parents=True)
    (place / f"{module}.py").write_text(source)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    points = f"[reroute_bench.attacks]\n{name} = {target.replace('MODULE', module)}\n"
    (about / "entry_points.txt").write_bytes(points.encode("utf-8", "surrogatepass"))
    sys.path.insert(0, str(place))
    try:
        yield module
    finally:
        sys.path.remove(str(place))
        sys.modules.pop(module, None)


@often
@given(
    name=st.one_of(st.just("plug"), some_text),
    target=st.one_of(st.just("MODULE:Plug"), st.sampled_from(["MODULE", ":", "os:x"]), some_text),
    base=st.sampled_from(["Attack", "Attack", "Plug", "object", "nothing"]),
    doc=text,
    summary=st.one_of(text.map("summary: ClassVar[str] = {}".format), st.just("")),
    kind=st.sampled_from(["int", "object"]),
    default=literals,
    about=text,
    command=st.sampled_from([("attacks",), ("attacks", "--json"), ("attacks", "plug")]),
)
def test_hostile_packages(
    tmp_path: Path, name: str, target: str, command: tuple[str, ...], **told_of: str
) -> None:
    with installed(tmp_path, name, target, SOURCE.format(**told_of)):
        code, out = told(*command)
    assert code in (0, 2)
    if "--json" in command and code == 0:
        assert {"name", "summary"} <= json.loads(out)[0].keys()


def test_a_sound_package_is_listed_and_one_with_a_command_for_a_name_is_not(tmp_path: Path) -> None:
    told_of = {"base": "Attack", "doc": "''", "about": "''", "kind": "int", "default": "1"}
    source = SOURCE.replace("LOOP = LOOP", "").format(
        summary="summary: ClassVar[str] = 'red \\x1b[31m\\nink'", **told_of
    )
    with installed(tmp_path, "plug", "MODULE:Plug", source):
        assert re.search(r"^plug +red  \[31m ink$", told("attacks")[1], re.M)
        assert "plug:steps=64" in told("attacks", "plug")[1]
    for name in ("x;id", "$(id)", "a b", "=1+1", "-x"):
        with installed(tmp_path, name, "MODULE:Plug", source):
            assert told("attacks")[0] == 2
