"""The attack interface: what every technique, shipped or third-party, receives and returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from torch import Generator

from attacks.core.artefact import EMPTY, Artefact
from attacks.core.behavior import Behavior
from attacks.core.layout import Layout
from attacks.core.prompt import Messages
from attacks.core.refusals.verdicts import Examiner
from attacks.core.search import CoordinateSearch, ProbeSampling, Pursuit, search_suffix
from attacks.core.state import State
from attacks.core.weights import Change

if TYPE_CHECKING:
    from attacks.core.model import Model

__all__ = [
    "Artefact",
    "Attack",
    "Behavior",
    "Pursuit",
    "State",
    "Step",
    "SuffixAttack",
    "ThreatModel",
]


class ThreatModel(StrEnum):
    """What the attacker may change, weakest first; boards never rank across threat models."""

    PROMPT = "prompt"
    PREFILL = "prefill"
    EMBEDDING = "embedding"
    INTERVENTION = "intervention"
    WEIGHTS = "weights"


@dataclass(frozen=True, eq=False)
class Step:
    """The state of an attack after one step."""

    prompts: tuple[Messages, ...]
    """Prompts to send, best first, ranked by the attack alone."""
    interventions: tuple[Change, ...] = ()
    """Changes to the model while it answers: to activations, or to weights."""
    loss: float | None = None
    """Of the best prompt, the lower the better; None: the attack has none."""
    state: State = field(default_factory=dict)
    """What `Attack.run` needs to go on from here: tensors and plain values."""
    target: str | None = None
    """How the answer should begin, if not with the behaviour's own target."""
    source: str = ""
    """Origin of the target, in words, for attacks that choose one or use a fallback."""


@dataclass(frozen=True)
class Attack(ABC):
    """A technique and its parameters.

    A subclass is a frozen dataclass of plain numbers and names: it is its own configuration, and
    name + parameters rebuild it. It reads no clock, draws only from the `rng` it is given, writes
    no file, and never sees a behaviour's `reference` or `decoys`.
    """

    name: ClassVar[str]
    """What `--attack` takes."""
    summary: ClassVar[str]
    """One line for `reroute attacks`."""
    threat_model: ClassVar[ThreatModel]
    """What the attacker may change."""
    needs_train: ClassVar[bool] = False
    """Whether `prepare` needs training behaviours."""
    searches: ClassVar[bool] = True
    """False: exactly one step and no search, so that answers can be generated in batches."""

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Fit what `run` needs, once for each model; see `Artefact`."""
        return EMPTY

    def fitting(
        self,
        model: Model,
        train: Sequence[Behavior],
        *,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[State | Artefact]:
        """`prepare` in steps, for fits that take long: checkpoints, and the artefact at last."""
        yield self.prepare(model, train, rng=rng)

    @abstractmethod
    def run(
        self,
        model: Model,
        behavior: Behavior,
        *,
        artefact: Artefact,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[Step]:
        """Yield a `Step` after each step of the search, best prompts first.

        The harness owns timing, budget, verification and checkpoints: it may stop iterating at any
        step, and passes the `state` of a step as `state` to resume from there.
        """


@dataclass(frozen=True)
class ChangeAttack(Attack):
    """The plain request, sent to a changed model: a subclass defines the change."""

    threat_model: ClassVar[ThreatModel] = ThreatModel.INTERVENTION
    searches: ClassVar[bool] = False

    @abstractmethod
    def change(self, model: Model, artefact: Artefact) -> Change:
        """What is done to the model while it answers."""

    def checked(
        self,
        model: Model,
        artefact: Artefact,
        fit: Sequence[Behavior],
        held_out: Sequence[Behavior],
    ) -> Artefact:
        """`artefact` with what the change does to behaviours that it was not fitted on.

        For changes that are to remove refusals: see `attacks.core.refusals.verdicts`.
        """
        examiner = Examiner(model, fit, held_out)
        return replace(artefact, check=examiner.check([self.change(model, artefact)]).data)

    def run(
        self,
        model: Model,
        behavior: Behavior,
        *,
        artefact: Artefact,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[Step]:
        """One step: the plain conversation with the change."""
        yield Step((model.conversation(behavior.text),), (self.change(model, artefact),))


@dataclass(frozen=True)
class SuffixAttack(Attack):
    """A search for a suffix: a subclass defines what is pursued, and may set other numbers.

    The defaults suit small models and a quick first look.
    """

    threat_model: ClassVar[ThreatModel] = ThreatModel.PROMPT
    use_gradient: ClassVar[bool] = True
    """False: tokens are drawn uniformly from all allowed ones."""

    steps: int = 32
    """Rounds of candidates and choice."""
    width: int = 128
    """Candidates drawn in each step."""
    topk: int = 64
    """Tokens per slot that the gradient proposes."""
    slots: int = 10
    """Length of the suffix in tokens."""
    n_replace: int = 1
    """Tokens changed in each candidate."""
    buffer: int = 1
    """0: move to the best candidate of a step even if it is worse, as nanoGCG does; 1 or more: keep
    that many and go on from the best (`CoordinateSearch`)."""
    replace_coefficient: float = 0.0
    """Above 0: the number of tokens changed falls with the loss, to `n_replace` (SSR, arXiv
    2503.06269)."""
    patience: int = 0
    """Above 0: steps without improvement after which the search jumps to a worse buffered entry."""
    early_stop: float | None = None
    """The search ends once the loss is at most this; none: it takes all steps."""
    layout: Layout = field(default_factory=Layout)
    """Where the tokens that are searched for stand."""

    @abstractmethod
    def pursuit(self, model: Model, behavior: Behavior, artefact: Artefact) -> Pursuit:
        """What the search minimises for this behaviour."""

    def search(self) -> CoordinateSearch:
        """The numbers of the search."""
        return CoordinateSearch(
            self.steps,
            self.width,
            self.topk,
            n_replace=self.n_replace,
            buffer=self.buffer,
            replace_coefficient=self.replace_coefficient,
            patience=self.patience,
            early_stop=self.early_stop,
            use_gradient=self.use_gradient,
        )

    def conversation(self, model: Model, behavior: Behavior) -> Messages:
        """What is sent, `SLOT` standing for each token that is searched for."""
        return self.layout.conversation(model, behavior, self.slots)

    def drafting(self) -> ProbeSampling:
        """Whether, and how, a draft model chooses which candidates are evaluated."""
        return ProbeSampling()

    def run(
        self,
        model: Model,
        behavior: Behavior,
        *,
        artefact: Artefact,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[Step]:
        """One step for each round of candidates and choice."""
        pursuit = self.pursuit(model, behavior, artefact)
        for found in search_suffix(
            model,
            behavior,
            pursuit,
            self.search(),
            slots=self.slots,
            artefact=artefact,
            rng=rng,
            state=state,
            asked=self.conversation(model, behavior),
            draft=self.drafting(),
        ):
            yield Step(found.prompts, loss=found.loss, state=found.state, source=found.source)
