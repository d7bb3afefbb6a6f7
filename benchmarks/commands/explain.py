"""One attack or judge in full: what it does, its parameters, an example. Needs no torch."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from typing import Any

from attacks.core.errors import BadInput, suggestion
from attacks.core.lookup.declared import Declared, Field
from benchmarks.common.lines import printable

_WIDTH = 96


def explain(kind: str, name: str, known: Mapping[str, Declared]) -> str:
    """What is declared of the class `name`, as text with a final newline.

    Args:
        kind: what it is called, such as "attack".
        name: one of `known`.
        known: what every class of the kind declares.

    Raises:
        BadInput: an unknown name.
    """
    if name not in known:
        valid = ", ".join(known)
        raise BadInput(f"unknown {kind} '{name}'; valid: {valid}{suggestion(name, known)}")
    found = known[name]
    lines = [f"{name}: {found.constants.get('summary', '')}", ""]
    for key in ("threat_model", "needs_train", "searches"):
        if key in found.constants:
            lines.append(f"{key.replace('_', ' ')}: {_shown(found.constants[key])}")
    lines += ["", *_paragraphs(found.doc)]
    if found.fields:
        lines += ["", "Parameters (name = default)", *_parameters(found.fields)]
    lines += ["", "Example", f"  {_example(kind, name, found)}"]
    if found.path:
        lines += ["", f"Source: {found.path}"]
    # Packages of others say all of this, and it goes to a terminal.
    return "\n".join(map(printable, lines)).replace("\n\n\n", "\n\n") + "\n"


def _paragraphs(doc: str) -> Iterator[str]:
    for paragraph in textwrap.dedent(doc).strip().split("\n\n"):
        yield from (*textwrap.wrap(" ".join(paragraph.split()), _WIDTH), "")


def _parameters(fields: tuple[Field, ...], prefix: str = "") -> Iterator[str]:
    for field in fields:
        if field.group:
            yield from _parameters(field.group, f"{prefix}{field.name}.")
            continue
        default = "" if field.default is MISSING else f" = {_shown(field.default)}"
        yield f"  {prefix}{field.name}{default}"
        doc = " ".join(field.doc.split())
        yield from textwrap.wrap(doc, _WIDTH, initial_indent="      ", subsequent_indent="      ")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # No JSON: a set, bytes, what has itself in it.
        return repr(value)


def _quoted(spec: str) -> str:
    """For a shell, in which single quotes of a spec would be lost."""
    return f'"{spec}"' if "'" in spec else spec


def _example(kind: str, name: str, found: Declared) -> str:
    spec = f"{name}:steps=64" if any(field.name == "steps" for field in found.fields) else name
    if kind == "judge":
        return f"reroute judge runs/quickstart --judge {name}"
    if kind == "defense":
        return (
            f"reroute run --model pocket-llama --defense {name} --attack direct --attack gcg "
            "--behaviors pocket-test --train pocket-train --limit 5 --harmless "
            f"--out runs/{name}"
        )
    if any(field.name == "file" for field in found.fields):
        spec = f"{name}:file='artifact.json'"
    train = " --train pocket-train" if found.constants.get("needs_train") else ""
    return (
        f"reroute run --model pocket-llama --attack {_quoted(spec)} --behaviors pocket-test{train} "
        f"--limit 5 --out runs/{name}"
    )
