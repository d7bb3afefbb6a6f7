"""What a results folder claims: greedy answers to harmful requests that a judge calls a success."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from attacks.core.errors import BadInput
from attacks.core.prompt import Message, Messages, conversation
from benchmarks.storage.records import Record
from benchmarks.storage.store import read_judgements, read_records

#: What changes the model, so that its string alone says nothing.
CHANGES = ("intervention", "weights")
_DATED = re.compile(r"(?:^| )dated (\d{4}-\d\d-\d\d)$")


class Condition(NamedTuple):
    """How answers are computed."""

    dtype: str
    batch: int

    @classmethod
    def parse(cls, text: str) -> Condition:
        """From `DTYPE` or `DTYPE:BATCH`.

        Raises:
            BadInput: not of that form; whether there is such a dtype shows on loading.
        """
        dtype, _, size = text.partition(":")
        if not dtype or not re.fullmatch(r"[1-9][0-9]{0,3}", size or "1", re.ASCII):
            raise BadInput(f"condition '{text}'; valid: DTYPE or DTYPE:BATCH, such as bfloat16:8")
        return cls(dtype, int(size or 1))

    def __str__(self) -> str:
        return f"{self.dtype}, batch of {self.batch}"


#: What decides whether a success is verified.
PLAIN = Condition("float32", 1)


@dataclass(frozen=True)
class Claim:
    """One candidate of a record that some judges call a success."""

    record: Record
    index: int
    judges: tuple[str, ...]

    @property
    def completion(self) -> str:
        """The recorded answer."""
        return self.record.completions[self.index]

    @property
    def opening(self) -> str:
        """What the attacker put into the model's mouth."""
        return self.record.openings[self.index] if self.record.openings else ""

    def asked(self, system: str | None) -> Messages:
        """What was sent; `system` is that of records which do not say."""
        own = self.record.system if self.record.system is not None else system
        turns = conversation(self.record.prompts[self.index], system=own)
        return (*turns, Message("assistant", self.opening)) if self.opening else turns


def claims_of(folder: Path, *, limit: int | None = None) -> list[Claim]:
    """The claims of a folder, in the order of its records.

    Args:
        folder: of results.
        limit: how many of each attack on each model, drawn with a fixed seed.

    Raises:
        BadInput: no records there.
    """
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    for row in read_judgements(folder):
        if row.success:
            found[row.key, row.completion_index].append(row.judge)
    claims = [
        Claim(record, index, tuple(sorted(found[record.key, index])))
        for record in read_records(folder)
        for index in range(min(record.greedy, len(record.prompts)))
        if record.harmful and (record.key, index) in found
    ]
    if limit is None:
        return claims
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for at, claim in enumerate(claims):
        groups[claim.record.model, claim.record.attack_hash].append(at)
    rng = random.Random(0)
    kept = sorted(
        at for group in groups.values() for at in rng.sample(group, min(limit, len(group)))
    )
    return [claims[at] for at in kept]


def split_revision(revision: str) -> tuple[str, str | None]:
    """The checkpoint's own revision, and the date that its chat template was told, if any."""
    found = _DATED.search(revision)
    return (revision[: found.start()], found[1]) if found else (revision, None)


def by_model(claims: Sequence[Claim]) -> dict[tuple[str, str], list[Claim]]:
    """Claims by model and revision."""
    groups: dict[tuple[str, str], list[Claim]] = defaultdict(list)
    for claim in claims:
        groups[claim.record.model, claim.record.revision].append(claim)
    return dict(groups)
