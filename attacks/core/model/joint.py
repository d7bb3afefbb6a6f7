"""Passes of several searches on one model joined into one, for devices that one cannot fill.

Each search has a view of the model (`JointModel`) that asks for a pass instead of running it; who
answers (`benchmarks.harness.together`) waits until all searches have asked, and runs what they have
asked for together. In a joint pass a sequence stands as

    padding, cached positions | new positions, padding

so that its own positions are next to each other, as a sliding window wants them, and each is told
its position in its own sequence. Padding before is masked; padding behind comes after everything
that is read, and attention is causal. So a search gets what it would get alone, up to rounding:
`refusal_to_join` tries it for each family.

What a search counts as its work is what it would be alone: padding is no work of the attack's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from attacks.core.errors import BadInput
from attacks.core.model.cache import Prefix
from attacks.core.model.model import Model
from attacks.core.model.wishes import Answering, Reading, Slope, Wish
from attacks.core.prompt import Messages
from attacks.core.sites import ATTENTION_WEIGHTS, Site, Trace
from attacks.core.weights import Change, WeightEdit

#: Puts a wish down, and comes back with its answer.
Ask = Callable[[Wish], Any]


@dataclass(eq=False)
class _Own:
    """What all views of one search share."""

    ask: Ask
    single: int = 0
    """Above 0 where weights are edited, which no other search may see."""
    sloping: int = 0
    """Above 0 inside `gradient`, whose backward pass is joined too."""


class JointModel(Model):
    """A light view on a model for one of several searches, with a meter of its own."""

    def __init__(self, model: Model, ask: Ask) -> None:
        """A view of `model` whose passes are put down with `ask`."""
        self.__dict__.update(model.__dict__)
        self.meter = model.meter.fresh()
        self._own = _Own(ask)

    @contextmanager
    def editing(self, changes: Sequence[Change] = ()) -> Iterator[None]:
        """As `Model.editing`; while weights are edited nothing of another search is run."""
        edits = self._edited(changes)
        self._own.single += edits
        try:
            with super().editing(changes):
                yield
        finally:
            self._own.single -= edits

    def _edited(self, changes: Sequence[Change]) -> bool:
        """Whether weights are edited, by this view's changes or by others."""
        return any(isinstance(change, WeightEdit) for change in (*self._changes, *changes))

    def gradient(self, loss: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
        """As `Model.gradient`, forward and backward joined with others."""
        if self._own.single:
            return super().gradient(loss, at)
        leaf = at.detach().requires_grad_()
        self._own.sloping += 1
        try:
            with torch.enable_grad():
                found = loss(leaf)
        finally:
            self._own.sloping -= 1
        gradient: Tensor = self._own.ask(Slope(found, leaf))
        return found.detach(), gradient

    def _trace(
        self,
        inputs: Tensor,
        reads: Sequence[Site],
        cache: DynamicCache | None,
        interventions: Sequence[Change],
        roles: Tensor | None,
    ) -> Trace:
        """`Model._trace`, joined with others where that can be done."""
        if (
            self._own.single
            or self._edited(interventions)
            or (torch.is_grad_enabled() and not self._own.sloping)
            or any(site.name in ATTENTION_WEIGHTS for site in reads)
        ):
            return super()._trace(inputs, reads, cache, interventions, roles)
        trace: Trace = self._own.ask(Reading(self, inputs, reads, cache, interventions, roles))
        return trace

    def generate(
        self,
        conversations: Sequence[Messages],
        *,
        max_new_tokens: int,
        interventions: Sequence[Change] = (),
        pad_to: int = 1,
        batch_size: int | None = None,
    ) -> list[str]:
        """As `Model.generate`; batches of a given shape are run alone."""
        single = self._own.single or self._edited(interventions)
        if single or pad_to > 1 or batch_size or not conversations:
            return super().generate(
                conversations,
                max_new_tokens=max_new_tokens,
                interventions=interventions,
                pad_to=pad_to,
                batch_size=batch_size,
            )
        wish = Answering(self, conversations, max_new_tokens, tuple(interventions))
        answers: list[str] = self._own.ask(wish)
        return answers


def refusal_to_join(model: Model) -> str:
    """Why searches on `model` cannot share passes; empty where they can.

    Two sequences of different lengths, one of them after a cached beginning, are run together and
    alone.
    """
    if type(model) is not Model:
        return "its answers pass checks, or it is read in another way"
    if len(set((getattr(model.hf, "hf_device_map", None) or {"": 0}).values())) > 1:
        return "it is spread over several devices"
    view = JointModel(model, lambda wish: wish.alone())
    ids = model.chat.allowed.nonzero()[:8, 0]

    def asked(prefix: Prefix) -> list[Reading]:
        rows = [(ids[3:5], 3, prefix.expanded(1)), (ids.flip(0)[:6], 0, DynamicCache())]
        return [
            Reading(view, row[None], _all(view, at, len(row)), cache, (), None)
            for row, at, cache in rows
        ]

    try:
        with torch.no_grad():
            prefix = view.prefix(ids[:3])
            alone = [wish.alone() for wish in asked(prefix)]
            together = Reading.together(asked(prefix))
    except BadInput as error:
        return str(error)
    except Exception as error:
        return f"a pass over sequences of different lengths fails ({type(error).__name__})"
    for one, other in zip(alone, together, strict=True):
        if not all(model.checks.same(other[site][0].float(), one[site][0].float()) for site in one):
            return "what it computes depends on the padding around a sequence"
    return ""


def _all(model: Model, start: int, length: int) -> list[Site]:
    """The residual stream after the last block, and the logits, at all positions."""
    positions = tuple(range(start, start + length))
    return [Site(model.n_layers - 1, "resid_post", positions), Site(-1, "logits", positions)]
