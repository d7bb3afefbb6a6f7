"""What a search may wait for, and how the wishes of several are answered together (see `joint`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from attacks.core.alike import same
from attacks.core.model import tracing
from attacks.core.model.cache import Part, handed_out, joined
from attacks.core.model.generation import prompts_of
from attacks.core.model.model import Model
from attacks.core.prompt import Messages
from attacks.core.sites import Site, Trace
from attacks.core.weights import Change

#: A role that no position has, for padding.
_NOBODY = -1


class Wish(ABC):
    """Something that a search waits for."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Its share in the cost of being answered, in positions."""

    @abstractmethod
    def joins(self, other: Wish) -> bool:
        """Whether one answer can be to both."""

    @abstractmethod
    def alone(self) -> Any:
        """The answer."""

    @classmethod
    @abstractmethod
    def together(cls, wishes: Sequence[Any]) -> list[Any]:
        """An answer to each of some that join."""


class Reading(Wish):
    """A forward pass."""

    def __init__(
        self,
        model: Model,
        inputs: Tensor,
        reads: Sequence[Site],
        cache: DynamicCache | None,
        interventions: Sequence[Change],
        roles: Tensor | None,
    ) -> None:
        """The arguments of `Model._trace`.

        Raises:
            BadInput: what the model refuses, before others are bothered with it.
        """
        self.given = inputs, reads, cache, interventions, roles
        self.model, self.reads, self.cache = model, reads, cache
        self.embeds = inputs if inputs.is_floating_point() else model.embed(inputs)
        self.rows, self.new = self.embeds.shape[:2]
        self.past = cache.get_seq_length() if cache else 0
        self.changes = (*model._changes, *interventions)
        self.roles = None if roles is None else roles.to(model.device).expand(self.rows, self.new)
        self.grad = torch.is_grad_enabled()
        self.plan = tracing.plan(reads, self.changes, past=self.past, n_layers=model.n_layers)
        model.checks.writes(self.plan.places)
        if self.embeds.requires_grad:
            model.checks.gradients()

    @property
    def size(self) -> int:
        return self.rows * self.new

    def joins(self, other: Wish) -> bool:
        # As deep, since what is kept of the layers below the deepest read is not there.
        return (
            isinstance(other, Reading)
            and self.grad == other.grad
            and self.plan.layers == other.plan.layers
            and bool(self.plan.head) == bool(other.plan.head)
            and (self.roles is None) == (other.roles is None)
            and self.embeds.dtype == other.embeds.dtype
            and same(self.changes, other.changes)
        )

    def alone(self) -> Trace:
        with torch.set_grad_enabled(self.grad):
            return Model._trace(self.model, *self.given)

    @classmethod
    def together(cls, wishes: Sequence[Reading]) -> list[Trace]:
        if len(wishes) == 1:
            return [wishes[0].alone()]
        with torch.set_grad_enabled(wishes[0].grad):
            found = _joint(wishes)
        for wish in wishes:
            wish.model.meter.count(
                rows=wish.rows,
                new=wish.new,
                past=wish.past,
                layers=wish.plan.layers,
                head_rows=len(wish.plan.head),
                backward=wish.embeds.requires_grad,
            )
        return found

    def columns(self, site: Site) -> list[int]:
        """Where in the joint pass the site's positions are: logits are given apart."""
        columns = [p - self.past for p in site.positions]
        if site.name != "logits":
            return columns
        return [self.plan.head.index(column) for column in columns]


def _joint(wishes: Sequence[Reading]) -> list[Trace]:
    """What each wish reads, from one pass over all of their sequences."""
    first, device = wishes[0], wishes[0].embeds.device
    longest, past = max(wish.new for wish in wishes), max(wish.past for wish in wishes)
    rows = [slice(*edge) for edge in pairwise(accumulate((w.rows for w in wishes), initial=0))]
    parts = [Part(place, wish.cache) for place, wish in zip(rows, wishes, strict=True)]
    cache = joined(parts, first.model.n_layers)
    embeds = torch.cat([_padded(wish.embeds, longest) for wish in wishes])
    roles = None
    if first.roles is not None:
        roles = torch.full((len(embeds), longest), _NOBODY, device=device)
    mask = torch.ones((len(embeds), past + longest), dtype=torch.long, device=device)
    steps = torch.arange(longest, device=device)
    positions, real = torch.empty_like(mask[:, past:]), mask[:, past:].bool()
    head = torch.zeros(
        (len(embeds), max(len(wish.plan.head) for wish in wishes)), dtype=torch.long, device=device
    )
    for place, wish in zip(rows, wishes, strict=True):
        mask[place, : past - wish.past] = 0
        positions[place] = wish.past + steps.clamp(max=wish.new - 1)
        real[place, wish.new :] = False
        head[place, : len(wish.plan.head)] = torch.tensor(wish.plan.head, device=device)
        if roles is not None and wish.roles is not None:
            roles[place, : wish.new] = wish.roles
    table: dict[Site, set[int]] = {}
    for wish in wishes:
        for site in wish.reads:
            table.setdefault(Site(site.layer, site.name), set()).update(wish.columns(site))
    reads = {at: Site(at.layer, at.name, tuple(sorted(found))) for at, found in table.items()}
    model = first.model
    plan = tracing.plan(list(reads.values()), first.changes, past=0, n_layers=model.n_layers)
    frame = tracing.Frame(mask, positions, real, head)
    work = tracing.Pass(embeds, cache, 0, first.changes, roles, frame)
    trace = tracing.run(model._envoy, model.structure, work, plan)
    handed_out(cache, parts, [wish.new for wish in wishes])
    found = []
    for place, wish in zip(rows, wishes, strict=True):
        own: Trace = {}
        for site in wish.reads:
            joint = reads[Site(site.layer, site.name)]
            at = [joint.positions.index(column) for column in wish.columns(site)]
            whole = trace[joint][place]
            in_order = at == list(range(at[0], at[0] + len(at)))
            own[site] = whole[:, at[0] : at[0] + len(at)] if in_order else whole[:, at]
        found.append(own)
    return found


def _padded(embeds: Tensor, length: int) -> Tensor:
    """(B, length, D) with the last position again where `embeds` (B, T, D) end."""
    more = length - embeds.shape[1]
    return torch.cat([embeds, embeds[:, -1:].detach().expand(-1, more, -1)], 1) if more else embeds


class Slope(Wish):
    """A backward pass, through the graph of a joint forward pass or of another."""

    size = 1  # Of one sequence each.

    def __init__(self, loss: Tensor, leaf: Tensor) -> None:
        """The gradient of `loss` () at `leaf`."""
        self.loss, self.leaf = loss, leaf

    def joins(self, other: Wish) -> bool:
        return isinstance(other, Slope)

    def alone(self) -> Tensor:
        return self.together([self])[0]

    @classmethod
    def together(cls, wishes: Sequence[Slope]) -> list[Tensor]:
        # No search's loss depends on another's leaf. The graph is kept, since others may still have
        # to go back through it; it goes with the last loss that was computed in it.
        losses, leaves = [wish.loss for wish in wishes], [wish.leaf for wish in wishes]
        return list(torch.autograd.grad(losses, leaves, retain_graph=True))


class Answering(Wish):
    """Greedy answers."""

    def __init__(
        self,
        model: Model,
        asked: Sequence[Messages],
        most: int,
        interventions: tuple[Change, ...],
    ) -> None:
        """The arguments of `Model.generate`."""
        self.model, self.asked, self.most, self.interventions = model, asked, most, interventions

    @property
    def size(self) -> int:
        return len(self.asked)

    def joins(self, other: Wish) -> bool:
        return (
            isinstance(other, Answering)
            and self.most == other.most
            and same(self.interventions, other.interventions)
            and same(self.model._changes, other.model._changes)
        )

    def alone(self) -> list[str]:
        return Model.generate(
            self.model, self.asked, max_new_tokens=self.most, interventions=self.interventions
        )

    @classmethod
    def together(cls, wishes: Sequence[Answering]) -> list[list[str]]:
        if len(wishes) == 1:
            return [wishes[0].alone()]
        model, asked = wishes[0].model, [prompts_of(w.model.chat, w.asked) for w in wishes]
        rows = [row for prompts in asked for row in prompts]
        longest = max(len(ids) for ids, _ in rows)
        said, new = model._answered(rows, longest, wishes[0].interventions, wishes[0].most)
        answers, lengths = iter(said), iter(new)
        found: list[list[str]] = []
        for wish, prompts in zip(wishes, asked, strict=True):
            found.append([next(answers).after(wish.model.chat.opening(m)) for m in wish.asked])
            wish.model.meter.count_answers(
                rows=len(prompts),
                prompt=max(len(ids) for ids, _ in prompts),
                new=max(next(lengths) for _ in prompts),
            )
        return found
