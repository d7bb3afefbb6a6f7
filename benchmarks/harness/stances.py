"""How attacks stand towards defences: they know of them, or they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attacks.attack import Attack, ThreatModel
from attacks.core.artefact import EMPTY
from attacks.core.model import Model, ShieldedModel
from benchmarks.defenses.registry import defense_hash, load_defense, params_of
from benchmarks.harness import artefacts

if TYPE_CHECKING:
    from benchmarks.defenses.defense import Defense

#: static: the attack runs on the model without the defence, and what it finds is sent to the
#: defended one. adaptive: it runs on the model with the defence.
Adaptivity = Literal["static", "adaptive"]

_BLIND: tuple[Adaptivity, ...] = ("static",)

#: Names no defence: the undefended rows of a suite with defences.
NONE = "none"


@dataclass(frozen=True)
class Stance:
    """A defence, and whether the attack knows of it."""

    defense: Defense
    adaptivity: Adaptivity

    @property
    def adaptive(self) -> bool:
        """Whether the attack runs on the model with the defence."""
        return self.adaptivity == "adaptive"

    @property
    def identity(self) -> tuple[str, str]:
        """What boards tell it by: `Record.defense_hash` and `Record.adaptivity`."""
        return defense_hash(self.defense), self.adaptivity


@dataclass(frozen=True)
class Guard:
    """A stance with what the defence has been fitted on the model at hand."""

    stance: Stance
    artefact: str
    """Id of its files; empty where the defence fits nothing."""
    hash: str
    """Of its content."""
    verdict: str
    """What a check on held-out prompts says of it."""

    def facts(self) -> dict[str, Any]:
        """JSON values that identify it in a cell's key."""
        return {
            "defense": self.stance.defense.name,
            "params": params_of(self.stance.defense),
            "artefact": self.hash,
            "adaptivity": self.stance.adaptivity,
        }

    def fields(self) -> dict[str, Any]:
        """The fields of a record that describe it."""
        return {
            "defense": self.stance.defense.name,
            "defense_params": params_of(self.stance.defense),
            "defense_hash": defense_hash(self.stance.defense),
            "defense_artefact": self.artefact,
            "defense_verdict": self.verdict,
            "adaptivity": self.stance.adaptivity,
        }


def load_defenses(specs: Sequence[str]) -> tuple[Defense | None, ...]:
    """The defences of a suite, each once; None is the undefended model, alone without any specs.

    Raises:
        BadInput: as `load_defense`.
    """
    if not specs:
        return (None,)
    found: dict[str, Defense | None] = {}
    for spec in specs:
        defense = None if spec == NONE else load_defense(spec)
        found.setdefault(defense_hash(defense) if defense else NONE, defense)
    return tuple(found.values())


def stances_of(
    attack: Attack, defenses: Sequence[Defense | None], wanted: Sequence[Adaptivity]
) -> list[Stance | None]:
    """What an attack is run as: both ways where knowing of the defence can make a difference."""
    found: list[Stance | None] = []
    for defense in defenses:
        if defense is None:
            found.append(None)
            continue
        ways = [way for way in wanted if way == "static" or can_adapt(attack, defense)]
        found += [Stance(defense, way) for way in ways or _BLIND]
    return found


def can_adapt(attack: Attack, defense: Defense) -> bool:
    """Whether the attack does anything else when it knows of the defence.

    One that does not search can at most be fitted to what the defence makes of the model. What is
    no string cannot be looked at through a defence without gradient.
    """
    if defense.adapts == "none":
        return False
    if defense.adapts == "search" and attack.threat_model == ThreatModel.EMBEDDING:
        return False
    return attack.searches or (defense.changes and type(attack).prepare is not Attack.prepare)


@dataclass
class Views:
    """A model as it stands behind the defences of its cells."""

    model: Model
    artefacts: Path
    """The folder of what has been fitted."""
    _defended: dict[Guard, Model] = field(default_factory=dict)

    def answering(self, guard: Guard | None) -> Model:
        """The model that answers: behind the defence, if there is one.

        Raises:
            BadInput: damaged artefact files, or as `Defense.around`.
        """
        if guard is None:
            return self.model
        if guard not in self._defended:
            fitted = artefacts.load(self.artefacts, guard.artefact) if guard.artefact else None
            view = guard.stance.defense.around(self.model, fitted or EMPTY)
            self._defended[guard] = view
        return self._defended[guard]

    def attacked(self, guard: Guard | None) -> Model:
        """The model that an attack is given.

        One that knows of the defence has a copy at home, where no check blocks his answers.
        """
        if guard is None or not guard.stance.adaptive:
            return self.model
        model = self.answering(guard)
        return model.unguarded() if isinstance(model, ShieldedModel) else model
