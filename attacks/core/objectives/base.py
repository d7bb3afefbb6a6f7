"""What a search minimises: a function of activations, bound to one behaviour."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attacks.core.artefact import Artefact
from attacks.core.prompt import Prompt
from attacks.core.sites import Site, Trace

if TYPE_CHECKING:
    from attacks.core.model import Model


class Bound(ABC):
    """An objective for one prompt; lower is better."""

    @property
    @abstractmethod
    def reads(self) -> tuple[Site, ...]:
        """Sites with absolute positions; the deepest decides where the forward pass stops."""

    @property
    def opening(self) -> Bound | None:
        """A loss that is never above this one and reads the first of its positions only, or itself.

        It reads them at the same sites, all those that this one reads up to some position.

        None where nothing so early bounds the loss. With it a search can leave a candidate as soon
        as it cannot be among the best any more.
        """
        return None

    @abstractmethod
    def __call__(self, trace: Trace) -> Tensor:
        """(B,) float32 losses from the activations at `reads`."""


class Objective(ABC):
    """A loss before it is bound; `a + 0.5 * b` composes."""

    @abstractmethod
    def bind(self, model: Model, prompt: Prompt, artefact: Artefact) -> Bound:
        """The objective for `prompt`, with what depends on the behaviour computed once."""

    def __add__(self, other: Objective) -> Objective:
        return Sum(((1.0, self), (1.0, other)))

    def __rmul__(self, weight: float) -> Objective:
        return Sum(((weight, self),))


@dataclass(frozen=True)
class Sum(Objective):
    """A weighted sum."""

    terms: tuple[tuple[float, Objective], ...]

    def bind(self, model: Model, prompt: Prompt, artefact: Artefact) -> Bound:
        return _BoundSum(
            tuple((weight, term.bind(model, prompt, artefact)) for weight, term in self.terms)
        )


@dataclass(frozen=True)
class _BoundSum(Bound):
    terms: tuple[tuple[float, Bound], ...]

    @property
    def reads(self) -> tuple[Site, ...]:
        return tuple(dict.fromkeys(site for _, term in self.terms for site in term.reads))

    @property
    def opening(self) -> Bound | None:
        """The sum of the openings, if each term has one and none is subtracted."""
        openings = [(weight, term.opening) for weight, term in self.terms]
        found = [(weight, part) for weight, part in openings if part is not None and weight >= 0]
        return _BoundSum(tuple(found)) if len(found) == len(openings) else None

    def __call__(self, trace: Trace) -> Tensor:
        return torch.stack([weight * term(trace) for weight, term in self.terms]).sum(0)
