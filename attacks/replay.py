"""Replay: published prompts, sent to this model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from torch import Generator

from attacks.attack import Artefact, Attack, Behavior, State, Step, ThreatModel
from attacks.core.behavior import normalise
from attacks.core.errors import BadInput
from attacks.core.parsing import from_json

if TYPE_CHECKING:
    from attacks.core.model import Model

_Prompts: TypeAlias = dict[str, list[str]]


@dataclass(frozen=True)
class Replay(Attack):
    """Sends the prompts of a JailbreakBench artifact or of HarmBench test cases.

    A JailbreakBench artifact (arXiv 2404.01318) holds one prompt for each behaviour, HarmBench test
    cases (arXiv 2402.04249) any number, used in the file's order; `--attempts` sets how many are
    answered. A prompt belongs to the behaviour with its id, or else to the one with its goal's
    text. A behaviour without a prompt in the file is an error, which counts as a failure.
    """

    name: ClassVar[str] = "replay"
    summary: ClassVar[str] = (
        "sends existing prompts: a JailbreakBench artifact or HarmBench test cases"
    )
    threat_model: ClassVar[ThreatModel] = ThreatModel.PROMPT
    searches: ClassVar[bool] = False

    file: str = ""
    """Path of the JSON file, required; its content is part of the attack's identity, so a changed
    file is refused later."""

    def __post_init__(self) -> None:
        if not self.file.strip():
            raise BadInput(
                "replay: file is missing; give the path of a JSON file, a JailbreakBench artifact "
                "(an object with a list 'jailbreaks') or HarmBench test cases (lists of strings "
                "by behaviour id), as in replay:file='artifact.json'"
            )

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """The prompts by id and by text."""
        by_id, by_text = self._read()
        return Artefact(data={"by_id": by_id, "by_text": by_text})

    def run(
        self,
        model: Model,
        behavior: Behavior,
        *,
        artefact: Artefact,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[Step]:
        """One step with the behaviour's prompts.

        Raises:
            BadInput: none in the file, or the file has changed since it was first read.
        """
        if Path(self.file).expanduser().is_file():
            by_id, by_text = self._read()
            if {"by_id": by_id, "by_text": by_text} != artefact.data:
                raise BadInput(f"replay: '{self.file}' has changed since; choose another --out")
        found = artefact.data["by_id"].get(behavior.id)
        if found is None:
            found = artefact.data["by_text"].get(normalise(behavior.text))
        if not found:
            raise BadInput(f"replay: no prompt for behaviour '{behavior.id}' in '{self.file}'")
        yield Step(tuple(model.conversation(prompt) for prompt in found))

    def _read(self) -> tuple[_Prompts, _Prompts]:
        """Prompts by behaviour id, and by the normalised text of the request.

        Raises:
            BadInput: no such file, or one in neither format.
        """
        path = Path(self.file).expanduser()
        try:
            content = from_json(path.read_text("utf-8"))
        except OSError as error:
            raise BadInput(f"replay: '{path}' cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise BadInput(f"replay: '{path}' is not JSON ({error})") from error
        try:
            if isinstance(content, dict) and isinstance(content.get("jailbreaks"), list):
                return _artifact(content["jailbreaks"])
            return _test_cases(content), {}
        except (KeyError, TypeError) as error:
            raise BadInput(
                f"replay: '{path}' is neither a JailbreakBench artifact (an object with a list "
                "'jailbreaks') nor HarmBench test cases (lists of strings by behaviour id)"
            ) from error


def _artifact(rows: Sequence[Mapping[str, Any]]) -> tuple[_Prompts, _Prompts]:
    by_id: _Prompts = {}
    by_text: _Prompts = {}
    for row in rows:
        # No prompt was submitted where there is none.
        prompts = [] if row["prompt"] is None else [_text(row["prompt"])]
        by_text.setdefault(normalise(_text(row["goal"])), []).extend(prompts)
        by_id.setdefault(_text(row["behavior"]), []).extend(prompts)
    # In JailbreakBench's own files `behavior` is a title, and only the goal's text tells which.
    return by_id, by_text


def _test_cases(content: Mapping[str, Any]) -> _Prompts:
    if not isinstance(content, dict) or not all(isinstance(own, list) for own in content.values()):
        raise TypeError("no lists by id")
    return {key: [_text(prompt) for prompt in own] for key, own in content.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value
