"""What judges need of a run beside its records: the behaviours, and how the model refuses.

Both are streams of JSON lines in the results folder, each line under the hash of its content, which
records name. So a folder can be judged later, elsewhere, and without the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.parsing import from_json
from attacks.core.refusals.openers import GENERAL_OPENERS
from attacks.core.thinking import PAIRS, Markers
from benchmarks.inputs.behaviors import load_behaviors, shipped_behaviors
from benchmarks.judges.judge import Case
from benchmarks.storage.records import Record, digest
from benchmarks.storage.store import BEHAVIORS, SPEECH, append_notes, read_notes


@dataclass(frozen=True)
class Speech:
    """How a model speaks, as far as judges go by it."""

    openers: tuple[str, ...]
    """Of its refusals, normalised."""
    markers: Markers | None
    """What it thinks between."""
    unknown: float = 0.0
    """Share of answers to harmful training prompts that seem to be refusals in other words."""

    def said(self, completion: str) -> str:
        """What a completion says after thinking."""
        return self.markers.answer(completion) if self.markers else completion


_BEHAVIOR, _SPEECH = TypeAdapter(Behavior), TypeAdapter(Speech)


def behavior_hash(behavior: Behavior) -> str:
    """Of all its fields."""
    return digest(dataclasses.asdict(behavior))


def note_behaviors(folder: Path, behaviors: Iterable[Behavior]) -> None:
    """Appends what is not there yet; for the one writer of the records.

    Raises:
        BadInput: the folder cannot be written.
    """
    append_notes(
        folder / BEHAVIORS, {behavior_hash(row): dataclasses.asdict(row) for row in behaviors}
    )


def note_speech(
    folder: Path, openers: Sequence[str], markers: Markers | None, *, unknown: float = 0.0
) -> str:
    """Appends how a model speaks unless that is there, and returns its hash.

    Raises:
        BadInput: the folder cannot be written.
    """
    content = dataclasses.asdict(Speech(tuple(openers), markers, unknown))
    name = digest(content)
    append_notes(folder / SPEECH, {name: content})
    return name


class Context:
    """The cases behind the records of a folder."""

    def __init__(self, folder: Path, behaviors: str | None = None) -> None:
        """Reads what the folder says.

        Args:
            folder: of results.
            behaviors: name or file of a set for records from before behaviours were kept; by
                default the shipped ones.

        Raises:
            BadInput: malformed lines, or no such set.
        """
        self.folder = folder
        self._rows = {
            name: _BEHAVIOR.validate_python(row)
            for name, row in read_notes(folder / BEHAVIORS).items()
        }
        self._speech = {
            name: _SPEECH.validate_python(row) for name, row in read_notes(folder / SPEECH).items()
        }
        self._given = load_behaviors(behaviors) if behaviors is not None else None
        self._by_id: dict[str, Behavior] | None = None
        self._openers: tuple[str, ...] | None = None

    def case(self, record: Record, index: int) -> Case:
        """What a judge is shown of one of the record's answers.

        Raises:
            BadInput: the record's behaviour is not to be found.
        """
        behavior = self.behavior(record)
        if record.target is not None:
            behavior = dataclasses.replace(behavior, target=record.target)
        completion = record.completions[index]
        speech = self._speech.get(record.speech) or self._older(completion)
        return Case(behavior, speech.said(completion), speech.openers)

    def behavior(self, record: Record) -> Behavior:
        """The record's behaviour.

        Raises:
            BadInput: it is not to be found.
        """
        found = self._rows.get(record.behavior_hash)
        if found is None:
            found = self._named().get(record.behavior_id)
        if found is None:
            raise BadInput(
                f"'{self.folder}': behaviour '{record.behavior_id}' is neither stored there nor "
                "in a shipped set; give --behaviors NAME_OR_FILE"
            )
        return found

    def _named(self) -> Mapping[str, Behavior]:
        """Behaviours by id; where two of one id differ, neither is taken."""
        if self._by_id is None:
            rows = self._given or [*self._rows.values(), *shipped_behaviors()]
            found: dict[str, Behavior] = {}
            twice = set()
            for row in rows:
                if found.setdefault(row.id, row) != row:
                    twice.add(row.id)
            self._by_id = {key: row for key, row in found.items() if key not in twice}
        return self._by_id

    def _older(self, completion: str) -> Speech:
        """For records that do not name a speech: all openers fitted in the folder, any markers."""
        if self._openers is None:
            fitted = sorted((self.folder / "artefacts").glob("*.json"))
            learned = [opener for path in fitted for opener in _openers(path)]
            self._openers = tuple(dict.fromkeys([*GENERAL_OPENERS, *learned]))
        pair = next((pair for pair in PAIRS if any(mark in completion for mark in pair)), None)
        return Speech(self._openers, Markers(*pair) if pair else None)


def _openers(path: Path) -> list[str]:
    try:
        found = from_json(path.read_text("utf-8"))["data"]["openers"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(opener) for opener in found] if isinstance(found, list) else []
