"""Mixture of tunable experts: switch off the experts that mediate refusal, or force them on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Generator

from attacks.attack import Artefact, Behavior, ChangeAttack
from attacks.core.analysis.experts import (
    activation_maps,
    answer_labels,
    expert_layers,
    permutation_test,
    ranking,
    relevance,
    split_half,
)
from attacks.core.errors import BadInput
from attacks.core.gating import ExcludeExperts, Expert, ForceExperts, SilenceExperts, per_block
from attacks.core.refusals.verdicts import hold_out
from attacks.core.weights import Change

if TYPE_CHECKING:
    from attacks.core.model import Model

_SHUFFLES = 2000
_SPLITS = 20


@dataclass(frozen=True)
class Experts(ChangeAttack):
    """Mixture of Tunable Experts (arXiv 2502.11096).

    Maps of how often each expert reads a training prompt's tokens are contrasted between prompts
    that the model refuses and those that it answers; the k experts most specific to refusals are
    switched off at every token. The paper's `k` was 10 of 14,848.
    """

    name: ClassVar[str] = "experts"
    summary: ClassVar[str] = "switches off the experts that mediate refusal in a mixture of experts"
    needs_train: ClassVar[bool] = True

    k: int = 4
    """Number of experts changed, over all blocks."""
    mode: Literal["off", "on"] = "off"
    """on: force them on instead, which should make the model refuse harmless requests."""
    when: Literal["before", "after"] = "before"
    """Switch off before top-k, so that the next best expert is promoted, or after; mode on is
    always after."""
    draw: int | None = None
    """Seed of a uniform draw of as many experts, as the control; none: the most relevant
    experts."""

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Choose the experts: `data["experts"]`, pairs of block and index, most relevant first.

        By relevance the artefact also holds `maps` (N, M, E) over the M blocks with experts,
        `refused` (N,), `relevance` and `p_values` (M, E), and how far two halves of the prompts
        agree.

        Raises:
            BadInput: a model without experts, more experts than it can spare, or one that refuses
                all or none of the training prompts.
        """
        layers = expert_layers(model)
        fit, held_out = hold_out(train, rng, who=self.name) if self.draw is None else ([], [])
        maps = activation_maps(model, [row.text for row in fit] or ["a"])
        blocks, size = maps.shape[1:]
        slots = round(float(maps[0, 0].sum()))
        # Before top-k a block must keep as many experts as a position has.
        most = slots if self.mode == "on" else size - slots if self.when == "before" else size
        if not 1 <= self.k <= blocks * most:
            raise BadInput(f"experts: k={self.k} is not in 1..{blocks * most} for '{model.name}'")
        if self.draw is not None:
            seeded = Generator().manual_seed(self.draw)
            order = ranking(torch.rand(blocks, size, generator=seeded), layers)
            return Artefact({}, {"experts": [list(e) for e in per_block(order, most)[: self.k]]})
        refused = answer_labels(model, fit)
        values = relevance(maps, refused)
        chosen = per_block(ranking(values, layers), most)[: self.k]
        p_values = permutation_test(maps, refused, draws=_SHUFFLES, rng=rng)
        at = [(layers.index(expert.layer), expert.number) for expert in chosen]
        found = Artefact(
            {
                "maps": maps.float(),
                "refused": refused,
                "relevance": values.float(),
                "p_values": p_values.float(),
            },
            {
                "experts": [list(expert) for expert in chosen],
                "relevance": [round(float(values[place]), 4) for place in at],
                "p_values": [round(float(p_values[place]), 5) for place in at],
                "split_half": round(split_half(maps, refused, splits=_SPLITS, rng=rng), 4),
                "refused": int(refused.sum()),
                "answered": int((~refused).sum()),
                "layers": list(layers),
            },
        )
        return found if self.mode == "on" else self.checked(model, found, fit, held_out)

    def change(self, model: Model, artefact: Artefact) -> Change:
        """The experts switched."""
        experts = tuple(Expert(*pair) for pair in artefact.data["experts"])
        off = ExcludeExperts if self.when == "before" else SilenceExperts
        return ForceExperts(experts) if self.mode == "on" else off(experts)
