"""What can be sent elsewhere of a results folder: strings, of prompts and of openings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from attacks.attack import Artefact, Attack, Behavior, State, Step, ThreatModel
from attacks.core.prompt import Message, Messages, conversation
from benchmarks.storage.records import Record

if TYPE_CHECKING:
    from torch import Generator

    from attacks.core.model import Model

#: Threat models whose attacks are their strings.
STRINGS = ("prompt", "prefill")


@dataclass(frozen=True)
class Recorded(Attack):
    """Sends what another attack has found on another model."""

    name: ClassVar[str] = "recorded"
    summary: ClassVar[str] = "sends recorded prompts"
    threat_model: ClassVar[ThreatModel] = ThreatModel.PROMPT
    searches: ClassVar[bool] = False

    origin: str
    """Key of the record."""
    prompts: tuple[Messages, ...]
    target: str | None = None
    """What judges are told that the answers were to begin with; see `Record.target`."""

    def run(
        self,
        model: Model,
        behavior: Behavior,
        *,
        artefact: Artefact,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[Step]:
        """One step."""
        yield Step(self.prompts, target=self.target)


def recorded(record: Record, *, attempts: int, system: str | None) -> Recorded:
    """The first candidates of a record, in conversations with its system prompt or `system`."""
    own = record.system if system is None else system
    openings = record.openings or ("",) * len(record.prompts)
    asked = zip(record.prompts[: record.greedy], openings, strict=False)
    prompts = tuple(_conversation(text, opening, own) for text, opening in asked)
    return Recorded(record.key, prompts[:attempts], record.target)


def _conversation(text: str, opening: str, system: str | None) -> Messages:
    turns = conversation(text, system=system)
    return (*turns, Message("assistant", opening)) if opening else turns


def sendable(
    records: Sequence[Record], *, limit: int | None = None
) -> tuple[list[Record], list[str]]:
    """The records whose prompts can be sent, and lines for the user about the others.

    Args:
        records: of a folder; those of earlier transfers and of defended models are no sources.
        limit: how many behaviours of each attack on each model, in the order of the records.
    """
    kept: list[Record] = []
    lost = Counter[str]()
    seen: dict[tuple[str, str], set[str]] = {}
    for record in records:
        if record.origin or record.defense or not record.completions:
            continue
        if record.threat_model not in STRINGS:
            lost[record.attack] += 1
            continue
        behaviors = seen.setdefault((record.model, record.attack_hash), set())
        if limit is None or record.behavior_id in behaviors or len(behaviors) < limit:
            behaviors.add(record.behavior_id)
            kept.append(record)
    notes = [
        f"not sent: {count} records of {attack}, which need more than their prompts"
        for attack, count in lost.items()
    ]
    return kept, notes
