"""Combinations of attacks: one prompts or searches, on the model as changed by the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Generator

from attacks.attack import Artefact, Attack, Behavior, State, Step, ThreatModel
from attacks.core.artefact import EMPTY, join_checks
from attacks.core.errors import BadInput
from attacks.core.prompt import Message, Messages
from attacks.core.refusals.verdicts import but_for_nothing_to_undo
from attacks.core.weights import Change

if TYPE_CHECKING:
    from attacks.core.model import Model

_ORDER = list(ThreatModel)
_BEHIND = (ThreatModel.PREFILL, ThreatModel.INTERVENTION, ThreatModel.WEIGHTS)


@dataclass(frozen=True, eq=False)
class Effect:
    """What parts of a combination do in addition to the prompt of the first."""

    interventions: tuple[Change, ...] = ()
    """Those of the rightmost part first, as they are applied."""
    opening: str | None = None
    """The prefill of the answer."""


@dataclass(frozen=True)
class Composed(Attack):
    """`first+second+...`: each part acts on the model as changed by all parts to its right.

    In `gcg+refusal-direction` the direction is fitted to the plain model, and GCG is prepared and
    run on the model with that direction ablated; at a site where several parts intervene, the
    rightmost comes first. Grouping makes no difference (`(a+b)+c` is `a+(b+c)`), order does. The
    first part may be any attack, and decides what is sent. The parts after it must take a single
    step and change activations or weights, or prefill the answer.

    A prefill changes no model: it is appended to what the first part sends, which searches as it
    would alone. When a search scores a target in one pass, interventions treat all of it as
    decoding step 0.
    """

    parts: tuple[Attack, ...]

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if len(names) < 2 or len(set(names)) < len(names):
            raise BadInput(f"attack '{self.name}': a combination has two or more different parts")
        for part in self.parts[1:]:
            if part.searches or part.threat_model not in _BEHIND:
                raise BadInput(
                    f"attack '{self.name}': '{part.name}' can only come first; valid after a "
                    "'+' are attacks that change activations or weights or prefill the answer, "
                    "without a search, such as refusal-direction or prefill"
                )
        if sum(part.threat_model == ThreatModel.PREFILL for part in self.parts) > 1:
            raise BadInput(f"attack '{self.name}': an answer can be prefilled only once")

    @property
    def name(self) -> str:  # type: ignore[override]
        """The names of the parts, joined by `+`."""
        return "+".join(part.name for part in self.parts)

    @property
    def summary(self) -> str:  # type: ignore[override]
        """One line."""
        behind = ", ".join(part.name for part in self.parts[1:])
        return f"{self.parts[0].name} on the model as changed by {behind}"

    @property
    def threat_model(self) -> ThreatModel:  # type: ignore[override]
        """The strongest of the parts."""
        return max((part.threat_model for part in self.parts), key=_ORDER.index)

    @property
    def needs_train(self) -> bool:  # type: ignore[override]
        """Whether a part does."""
        return any(part.needs_train for part in self.parts)

    @property
    def searches(self) -> bool:  # type: ignore[override]
        """Whether the first part does."""
        return self.parts[0].searches

    @property
    def steps(self) -> int | None:
        """Steps of the first part's search, where it has such a number."""
        steps: int | None = getattr(self.parts[0], "steps", None)
        return steps

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Every part's artefact, joined; fitted from right to left (see `stage`)."""
        fitted = [EMPTY] * len(self.parts)
        for at in reversed(range(len(self.parts))):
            changed = self.stage(at, model, train, self.join(fitted), rng=rng)
            fitted[at] = self.parts[at].prepare(changed, train, rng=rng)
        return self.join(fitted)

    def stage(
        self,
        at: int,
        model: Model,
        train: Sequence[Behavior],
        artefact: Artefact,
        *,
        rng: Generator,
    ) -> Model:
        """The model that part `at` is fitted to: as the parts to its right change it.

        A change that depends on the behaviour is that for the first harmful training behaviour;
        without any there is none. `model` itself where nothing changes.
        """
        sample = next((behavior for behavior in train if behavior.harmful), None)
        if sample is None:
            return model
        change = self._change(at, model, sample, artefact, rng)
        return model.changed(change.interventions)

    def join(self, fitted: Sequence[Artefact]) -> Artefact:
        """The parts' artefacts as one; names of tensors and data begin with the part's name."""
        pairs = list(zip(self.parts, fitted, strict=True))
        return Artefact(
            {f"{part.name}/{key}": value for part, a in pairs for key, value in a.tensors.items()},
            {part.name: dict(a.data) for part, a in pairs if a.data},
            sum(a.seconds for a in fitted),
            join_checks(_told(pairs)),
        )

    def run(
        self,
        model: Model,
        behavior: Behavior,
        *,
        artefact: Artefact,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[Step]:
        """The first part's steps on the changed model, with all that changes it."""
        change = self._change(0, model, behavior, artefact, rng)
        first = self.parts[0]
        for step in first.run(
            model.changed(change.interventions),
            behavior,
            artefact=_own(artefact, first),
            rng=rng,
            state=state,
        ):
            yield replace(
                step,
                prompts=tuple(_opened(prompt, change.opening) for prompt in step.prompts),
                interventions=(*change.interventions, *step.interventions),
            )

    def _change(
        self, at: int, model: Model, behavior: Behavior, artefact: Artefact, rng: Generator
    ) -> Effect:
        """What the parts to the right of part `at` do."""
        interventions: tuple[Change, ...] = ()
        opening = None
        for part in reversed(self.parts[at + 1 :]):
            (step,) = part.run(
                model.changed(interventions), behavior, artefact=_own(artefact, part), rng=rng
            )
            interventions = (*interventions, *step.interventions)
            last = step.prompts[0][-1]
            opening = last.content if last.role == "assistant" else opening
        return Effect(interventions, opening)


def _told(pairs: Sequence[tuple[Attack, Artefact]]) -> dict[str, Mapping[str, Any]]:
    """The parts' checks by name; what a good part to the right has undone is no fault."""
    found: dict[str, Mapping[str, Any]] = {}
    undone = False
    for part, artefact in reversed(pairs):
        check = but_for_nothing_to_undo(artefact.check) if undone else artefact.check
        undone = undone or check.get("verdict") == "good"
        if check:
            found[part.name] = check
    return dict(reversed(found.items()))


def _opened(prompt: Messages, opening: str | None) -> Messages:
    return prompt if opening is None else (*prompt, Message("assistant", opening))


def _own(artefact: Artefact, part: Attack) -> Artefact:
    """A part's artefact out of the joined one."""
    head = f"{part.name}/"
    tensors = {
        name.removeprefix(head): value
        for name, value in artefact.tensors.items()
        if name.startswith(head)
    }
    return Artefact(tensors, artefact.data.get(part.name, {}))
