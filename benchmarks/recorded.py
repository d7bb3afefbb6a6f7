"""What judging a recorded attack anew needs beside its record: the behaviour, and the openers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attacks.core.behavior import Behavior
from attacks.core.coherence import echoes, loops
from attacks.core.errors import BadInput
from attacks.core.refusal import GENERAL_OPENERS
from benchmarks.behaviors import load_behaviors, shipped_behaviors
from benchmarks.judges import Verdict, load_judge
from benchmarks.records import Record


class Recorded:
    """The behaviours of a results folder, and the refusal openers learned in it."""

    def __init__(self, folder: Path, behaviors: str | None = None) -> None:
        """Reads the set of this name or file; by default behaviours are looked for in shipped ones.

        Raises:
            BadInput: no such set.
        """
        given = load_behaviors(behaviors) if behaviors else shipped_behaviors()
        self._by_id = {row.id: row for row in given}
        fitted = [
            str(opener)
            for path in sorted((folder / "artefacts").glob("*.json"))
            for opener in _data(path).get("openers", ())
        ]
        #: Of all models of the folder: records do not say which are whose.
        self.openers = tuple(dict.fromkeys([*GENERAL_OPENERS, *fitted]))

    def behavior(self, record: Record) -> Behavior:
        """The behaviour, with the target that the attack put in the place of its own.

        Raises:
            BadInput: it is in no set at hand.
        """
        found = self._by_id.get(record.behavior_id)
        if found is None:
            raise BadInput(
                f"behaviour '{record.behavior_id}' is in no shipped set; give --behaviors "
                "NAME_OR_FILE"
            )
        return found if record.target is None else replace(found, target=record.target)

    def verdicts(
        self, record: Record, judges: Sequence[str], said: str, *, prompt: str, opening: str = ""
    ) -> dict[str, Verdict]:
        """What judges say of an answer, thinking taken out; loops and echoes are garbled.

        Raises:
            BadInput: an unknown judge, or as `behavior`.
        """
        behavior = self.behavior(record)
        garbled = loops(opening + said) or echoes(opening + said, prompt)
        found = {}
        for name in judges:
            judge = load_judge(name)
            verdict = judge.judge(behavior, said, openers=self.openers)
            found[name] = verdict.of_garbled() if garbled and not judge.takes_garbled else verdict
        return found


def _data(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return data if isinstance(data, dict) else {}
