"""What stands between a user and a model, and what it costs an attack that knows of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import torch
from torch import Tensor

from attacks.core.answer import Answer
from attacks.core.objectives import Bound
from attacks.core.prompt import Messages, Prompt
from attacks.core.sites import Site, Trace
from attacks.core.weights import Change

if TYPE_CHECKING:
    from attacks.core.model import Model


class Shielded(Answer):
    """An answer that has passed a model's shields, or what was said in its place."""

    by: str
    """The shield that blocked it; empty where none did."""
    scores: Mapping[str, float]
    """How far the prompt or the answer was over each shield's threshold, by the shield's name."""

    def __new__(
        cls, text: str, by: str = "", scores: Mapping[str, float] | None = None
    ) -> Shielded:
        """An answer with what became of it."""
        made = super().__new__(cls, text, ended=not isinstance(text, Answer) or text.ended)
        made.by = by
        made.scores = dict(scores or {})
        return made

    def scored(self, name: str, score: float) -> Shielded:
        """This answer with one more score."""
        return Shielded(self, self.by, {name: score, **self.scores})


#: Answers to conversations, in their order.
Ask: TypeAlias = Callable[[Sequence[Messages]], list[Shielded]]
#: (B, S) fillings as conversations -> (B,) what is added to their losses.
Toll: TypeAlias = Callable[[Sequence[Messages]], Tensor]


@dataclass(frozen=True, eq=False)
class Exchange:
    """What a shield is given in addition to the conversations."""

    model: Model
    """The model behind all shields, to read from."""
    interventions: tuple[Change, ...]
    """What the attacker changes in it."""
    ask: Ask
    """Passes conversations on to what is behind this shield."""


class Shield(ABC):
    """Decides what of a conversation reaches a model, and what of an answer the user."""

    whole: ClassVar[bool] = False
    """Whether the model has to read a prompt in one pass, without a cache of its beginning."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What records call it."""

    @abstractmethod
    def answer(self, exchange: Exchange, asked: Sequence[Messages]) -> list[Shielded]:
        """One answer to each conversation."""

    def penalty(self, model: Model, prompt: Prompt) -> Bound | None:
        """What an attack that differentiates through the shield adds to its loss; None: nothing."""
        return None

    def toll(self, model: Model, prompt: Prompt) -> Toll | None:
        """The same for a shield that has no gradient: fillings are looked at one by one."""
        return None


@dataclass(frozen=True, eq=False)
class Penalised(Bound):
    """An objective and the penalties of all shields."""

    terms: tuple[Bound, ...]

    @property
    def reads(self) -> tuple[Site, ...]:
        return tuple(dict.fromkeys(site for term in self.terms for site in term.reads))

    def __call__(self, trace: Trace) -> Tensor:
        return torch.stack([term(trace) for term in self.terms]).sum(0)


def penalised(model: Model, prompt: Prompt, objective: Bound) -> Bound:
    """`objective` with the penalties of the model's shields; itself where there are none."""
    found = [shield.penalty(model, prompt) for shield in model.shields]
    terms = tuple(term for term in found if term is not None)
    return Penalised((objective, *terms)) if terms else objective


def toll_of(model: Model, prompt: Prompt) -> Toll | None:
    """The sum of the tolls of the model's shields; None where there are none."""
    found = [shield.toll(model, prompt) for shield in model.shields]
    tolls = [toll for toll in found if toll is not None]
    if not tolls:
        return None
    return lambda asked: torch.stack([toll(asked) for toll in tolls]).sum(0)


@dataclass(frozen=True, eq=False)
class Hinge(Bound):
    """weight * max(0, excess + margin): nothing for what passes a check with some room."""

    excess: Bound
    weight: float
    margin: float

    @property
    def reads(self) -> tuple[Site, ...]:
        return self.excess.reads

    def __call__(self, trace: Trace) -> Tensor:
        return self.weight * (self.excess(trace) + self.margin).clamp_min(0)


@dataclass(frozen=True, eq=False)
class Blocking(Shield):
    """Blocks prompts by a score; what passes is asked."""

    title: str
    """Name of the defence, for records."""
    refusal: str
    """What a blocked prompt is answered."""
    weight: float
    """Of what an attack adds to its loss, in units of the loss for each of the score."""
    margin: float
    """That begins so far below the threshold, in units of the score."""

    @property
    def name(self) -> str:
        return self.title

    @abstractmethod
    def scores(
        self, model: Model, asked: Sequence[Messages], interventions: Sequence[Change]
    ) -> list[float]:
        """How far each conversation is above the threshold; above 0 it is blocked."""

    def answer(self, exchange: Exchange, asked: Sequence[Messages]) -> list[Shielded]:
        found = self.scores(exchange.model, asked, exchange.interventions)
        passed = exchange.ask(
            [turns for turns, over in zip(asked, found, strict=True) if over <= 0]
        )
        answers = iter(passed)
        said = [next(answers) if over <= 0 else Shielded(self.refusal, self.name) for over in found]
        return [one.scored(self.name, over) for one, over in zip(said, found, strict=True)]


@dataclass(frozen=True, eq=False)
class Check(Blocking):
    """Blocks by a score that one pass reads, and that gradients flow through."""

    excess: Callable[[Model, Prompt], Bound]
    """(B,) how far the score of a prompt is above its threshold."""

    def scores(
        self, model: Model, asked: Sequence[Messages], interventions: Sequence[Change]
    ) -> list[float]:
        return excesses(model, asked, self.excess, interventions)

    def penalty(self, model: Model, prompt: Prompt) -> Bound:
        return Hinge(self.excess(model, prompt), self.weight, self.margin)


@dataclass(frozen=True, eq=False)
class BlackBox(Blocking):
    """Blocks by a score that takes more than one pass over the prompt: it has no gradient."""

    measure: Callable[[Model, Sequence[Messages], Sequence[Change]], list[float]]
    """How far each conversation is above the threshold."""

    def scores(
        self, model: Model, asked: Sequence[Messages], interventions: Sequence[Change]
    ) -> list[float]:
        return self.measure(model, asked, interventions)

    def toll(self, model: Model, prompt: Prompt) -> Toll:
        def cost(asked: Sequence[Messages]) -> Tensor:
            excess = torch.tensor(self.scores(model, asked, ()))
            return self.weight * (excess + self.margin).clamp_min(0)

        return cost


@torch.no_grad()
def excesses(
    model: Model,
    asked: Sequence[Messages],
    excess: Callable[[Model, Prompt], Bound],
    interventions: Sequence[Change] = (),
) -> list[float]:
    """What `excess` gives for each conversation, alone: batches would show in the last digits."""
    found = []
    with model.editing(interventions):
        for turns in asked:
            prompt = model.chat.prompt(turns, target=None, rng=torch.Generator())
            bound = excess(model, prompt)
            trace = model.trace(
                prompt.ids.unsqueeze(0),
                bound.reads,
                interventions=interventions,
                roles=prompt.roles,
            )
            found.append(float(bound(trace)[0]))
    return found
