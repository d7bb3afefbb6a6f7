"""Latent Guard and erase-and-check: what the model itself takes for harmful is blocked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor
from torch.nn.functional import cosine_similarity

from attacks.core.artefact import Artefact
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.harmfulness import harm_directions
from attacks.core.objectives import Bound
from attacks.core.prompt import INSTRUCTION, Prompt
from attacks.core.shields import Check
from attacks.core.sites import Site, Trace
from benchmarks.defenses.defense import REFUSAL, Defense, texts_of
from benchmarks.defenses.thresholds import (
    TOLERABLE,
    checked,
    halves,
    measured,
    threshold_between,
)
from benchmarks.roc import area_under_curve

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class LatentCheck(Defense):
    """What defences share that read harmfulness from the model (arXiv 2507.11878, section 5).

    The score of a token is the cosine of the residual stream there with the harmfulness direction,
    mean of harmful minus mean of harmless requests at their last token, averaged over `layers`.
    """

    adapts: ClassVar = "gradient"
    needs_train: ClassVar[bool] = True

    layers: tuple[int, ...] = ()
    """Whose outputs are read. None: the one that tells held-out requests apart best, the earliest
    of equally good ones (the paper averages over all, also those that know only the last word)."""
    budget: float = TOLERABLE
    """Share of held-out harmless requests that may be blocked where the threshold is put."""
    weight: float = 10.0
    """Of the penalty that attacks add to their loss, a nat for each unit of cosine."""
    margin: float = 0.05
    """Cosine below the threshold from which the penalty counts."""

    def __post_init__(self) -> None:
        if not 0 <= self.budget < 1:
            raise BadInput(f"{self.name}: budget={self.budget}: must be from 0 to below 1")

    def depth(self) -> int:
        """How many tokens, counted from the request's last, are read."""
        return 1

    def fit(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Directions from half of the behaviours, layer and threshold from a quarter, and a check.

        Raises:
            BadInput: a layer that is not there, or too few behaviours.
        """
        wrong = [layer for layer in self.layers if not 0 <= layer < model.n_layers]
        if wrong:
            raise BadInput(f"{self.name}: no layer {wrong[0]}; there are {model.n_layers}")
        rows, rest = halves(train, rng=rng)
        chosen, last = halves(rest, rng=rng)
        layers = self.layers or tuple(range(model.n_layers))
        tensors = harm_directions(model, rows, layers)
        directions = Artefact(tensors)
        choices = [layers] if self.layers else [(layer,) for layer in layers]
        scored = {}
        for at in choices:
            excess = partial(self.excess, directions, at, 0.0)
            scored[at] = [
                measured(model, texts_of(chosen, harmful=kind), excess) for kind in (False, True)
            ]
        best = max(choices, key=lambda at: area_under_curve(*scored[at]) or 0.0)
        harmless, harmful = scored[best]
        threshold = threshold_between(harmless, harmful, self.budget)
        excess = partial(self.excess, directions, best, threshold)
        found = [measured(model, texts_of(last, harmful=kind), excess) for kind in (False, True)]
        kept = {f"direction.{layer}": tensors[f"direction.{layer}"] for layer in best}
        return Artefact(kept, {"threshold": threshold, "layers": list(best)}, check=checked(*found))

    def excess(
        self,
        artefact: Artefact,
        layers: Sequence[int],
        threshold: float,
        model: Model,
        prompt: Prompt,
    ) -> Bound:
        """How far the prompt's score is above a threshold, in units of cosine.

        Raises:
            BadInput: no token of the request.
        """
        places = (prompt.roles == INSTRUCTION).nonzero().flatten().tolist()[-self.depth() :]
        if not places:
            raise BadInput("no token of the prompt lies within the request; it is empty")
        directions = [artefact.tensors[f"direction.{layer}"] for layer in layers]
        sites = tuple(Site(layer, "resid_post", tuple(places)) for layer in layers)
        return _Harmful(sites, torch.stack(directions).to(model.device), threshold)

    def around(self, model: Model, artefact: Artefact) -> Model:
        """A check in front of the model."""
        from attacks.core.model import ShieldedModel

        layers, threshold = artefact.data["layers"], artefact.data["threshold"]
        excess = partial(self.excess, artefact, layers, threshold)
        check = Check(self.name, excess, REFUSAL, self.weight, self.margin)
        return ShieldedModel(model, [check])


@dataclass(frozen=True)
class LatentGuard(LatentCheck):
    """Blocks requests whose last token the model takes for harmful (arXiv 2507.11878, section 5).

    Unlike in the paper the score is the cosine with the direction and not the difference of cosines
    with both means, of one layer by default, and the threshold is not 0 but chosen on held-out
    requests.
    """

    name: ClassVar[str] = "latent-guard"
    summary: ClassVar[str] = "blocks requests that the model itself takes for harmful"


@dataclass(frozen=True)
class EraseAndCheck(LatentCheck):
    """Blocks a request if it, or what is left when its last tokens are erased, seems harmful.

    Erase-and-check in suffix mode (arXiv 2309.02705, section 3), which guarantees that a suffix of
    up to `erased` tokens hides nothing that its filter finds without it. The filter is Latent
    Guard's score in place of a trained classifier; as attention is causal, one pass over the whole
    request reads all its beginnings, at the tokens where they end. The threshold is for the highest
    of these scores.
    """

    name: ClassVar[str] = "erase-and-check"
    summary: ClassVar[str] = "blocks requests that seem harmful once up to N last tokens are erased"

    erased: int = 20
    """Most tokens erased; a part of each request is always left."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.erased < 1:
            raise BadInput(f"erase-and-check: erased={self.erased}: must be at least 1")

    def depth(self) -> int:
        """The whole request's last token, and those of what is left of it."""
        return self.erased + 1


@dataclass(frozen=True, eq=False)
class _Harmful(Bound):
    sites: tuple[Site, ...]
    directions: Tensor
    """(K, D)"""
    threshold: float

    @property
    def reads(self) -> tuple[Site, ...]:
        return self.sites

    def __call__(self, trace: Trace) -> Tensor:
        states = torch.stack([trace[site] for site in self.sites], dim=2)
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        cosines = cosine_similarity(states, self.directions.to(states.dtype), dim=-1)
        return cosines.mean(2).amax(1) - self.threshold
