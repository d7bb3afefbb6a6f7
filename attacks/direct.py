"""No attack: the behaviour's text unchanged, the baseline row of every board."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Generator

from attacks.attack import Artefact, Attack, Behavior, State, Step, ThreatModel

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class Direct(Attack):
    """Sends the behaviour's text unchanged."""

    name: ClassVar[str] = "direct"
    summary: ClassVar[str] = "sends the request unchanged, without an attack (baseline)"
    threat_model: ClassVar[ThreatModel] = ThreatModel.PROMPT
    searches: ClassVar[bool] = False

    def run(
        self,
        model: Model,
        behavior: Behavior,
        *,
        artefact: Artefact,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[Step]:
        """One step with the plain conversation."""
        yield Step((model.conversation(behavior.text),))
