"""The defence interface: what every defence, shipped or third-party, receives and returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Generator

from attacks.core.artefact import EMPTY, Artefact, join_checks
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.shields import Shielded

if TYPE_CHECKING:
    from attacks.core.model import Model

#: What a blocked request is answered: judges know it for a refusal by its opening.
REFUSAL = "I'm sorry, but I cannot help with that."

#: How an attack that knows the defence takes it into account. gradient: it differentiates through
#: it; search: it looks at what it does to candidates; none: it cannot, and only static rows exist.
Adapts = Literal["gradient", "search", "none"]


@dataclass(frozen=True)
class Defense(ABC):
    """A technique and its parameters.

    A subclass is a frozen dataclass of plain numbers and names: it is its own configuration, and
    name + parameters rebuild it. It reads no clock, draws only from generators that it is given or
    seeds from the request, and never sees a behaviour's `reference` or `decoys`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for `reroute defenses`."""
    adapts: ClassVar[Adapts]
    changes: ClassVar[bool] = False
    """Whether it changes what the model reads or computes. What is false only checks prompts and
    answers, is fitted to the model as the others change it, and reads that model."""
    needs_train: ClassVar[bool] = False
    """Whether `fit` needs training behaviours, harmful and harmless ones."""

    def fit(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Fit thresholds and directions, once for each model; its `check` reports how well."""
        return EMPTY

    @abstractmethod
    def around(self, model: Model, artefact: Artefact) -> Model:
        """The model with this defence; `model` stays as it is."""


@dataclass(frozen=True)
class Stack(Defense):
    """`first+second+...`: the first is nearest to the user.

    Those that change the model come first, the rightmost innermost, wherever they stand among the
    others. Checks are fitted to, and read, the model with all those changes; the leftmost check is
    asked first and passes on to the next what it does not block.
    """

    parts: tuple[Defense, ...]

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if len(names) < 2 or len(set(names)) < len(names):
            raise BadInput(f"defence '{self.name}': a combination has two or more different parts")

    @property
    def name(self) -> str:  # type: ignore[override]
        """The names of the parts, joined by `+`."""
        return "+".join(part.name for part in self.parts)

    @property
    def summary(self) -> str:  # type: ignore[override]
        """One line."""
        return ", then ".join(part.name for part in self.parts)

    @property
    def adapts(self) -> Adapts:  # type: ignore[override]
        """As an attack can adapt to the part that it adapts to best."""
        order: tuple[Adapts, ...] = ("gradient", "search", "none")
        return min((part.adapts for part in self.parts), key=order.index)

    @property
    def changes(self) -> bool:  # type: ignore[override]
        """Whether a part does."""
        return any(part.changes for part in self.parts)

    @property
    def needs_train(self) -> bool:  # type: ignore[override]
        """Whether a part does."""
        return any(part.needs_train for part in self.parts)

    def innermost_first(self) -> list[Defense]:
        """The parts in the order in which they are put around the model."""
        inward = self.parts[::-1]
        return [p for p in inward if p.changes] + [p for p in inward if not p.changes]

    def fit(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Every part's artefact, joined."""
        fitted: dict[str, Artefact] = {}
        for part in self.innermost_first():
            fitted[part.name] = part.fit(model, train, rng=rng)
            model = part.around(model, fitted[part.name])
        return Artefact(
            {
                f"{name}/{key}": value
                for name, a in fitted.items()
                for key, value in a.tensors.items()
            },
            {name: dict(a.data) for name, a in fitted.items() if a.data},
            check=join_checks({name: a.check for name, a in fitted.items() if a.check}),
        )

    def around(self, model: Model, artefact: Artefact) -> Model:
        """The parts put around each other."""
        for part in self.innermost_first():
            model = part.around(model, own_part(artefact, part.name))
        return model


def own_part(artefact: Artefact, name: str) -> Artefact:
    """A part's artefact out of the joined one."""
    head = f"{name}/"
    tensors = {
        key.removeprefix(head): value
        for key, value in artefact.tensors.items()
        if key.startswith(head)
    }
    return Artefact(tensors, artefact.data.get(name, {}))


def texts_of(train: Sequence[Behavior], *, harmful: bool) -> list[str]:
    """The texts of one kind of training behaviours."""
    return [row.text for row in train if row.harmful == harmful]


def settled(name: str, score: float, answer: Shielded) -> Shielded:
    """An answer that shield `name` scored: blocked above 0, unless one behind it did so."""
    if answer.by or score <= 0:
        return answer.scored(name, score)
    return Shielded(REFUSAL, name, {name: score, **answer.scores})
