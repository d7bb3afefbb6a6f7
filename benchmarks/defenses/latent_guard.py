"""Latent Guard: block what the model itself represents as harmful."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import cosine_similarity, normalize

from attacks.core.artefact import Artefact
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.objectives import Bound
from attacks.core.prompt import Messages, Prompt
from attacks.core.reading.states import at_last, at_last_instruction, read
from attacks.core.shields import Check, excesses
from attacks.core.sites import Site, Trace
from attacks.core.weights import Change
from benchmarks.common.roc import area_under_curve
from benchmarks.defenses.defense import REFUSAL, Defense, texts_of
from benchmarks.defenses.thresholds import (
    checked,
    halves,
    threshold_between,
)

if TYPE_CHECKING:
    from attacks.core.model import Model

#: What is fitted, for each layer.
_TENSORS = ("direction", "centre")
#: An AUC that is lower by this much at most is as good.
_AS_GOOD = 0.005


@dataclass(frozen=True)
class LatentCheck(Defense):
    """What defences share that read harmfulness from the model (arXiv 2507.11878, section 5).

    The score of a token is the cosine between the harmfulness direction, mean of harmful minus mean
    of harmless requests at that token, and the residual stream there less the middle of both means,
    averaged over `layers`.
    """

    needs_train: ClassVar[bool] = True

    layers: tuple[int, ...] = ()
    """Layers to read (their outputs). None: the one that separates held-out requests best, the
    earliest of equally good ones (the paper averages over all, including those that know only the
    last word)."""
    budget: float = 0.02
    """Share of held-out harmless requests that may be blocked at the chosen threshold."""
    weight: float = 10.0
    """Weight of the penalty in attacks' losses, in nats per unit of cosine."""
    margin: float = 0.05
    """Distance below the threshold, in cosine, at which the penalty begins."""

    def __post_init__(self) -> None:
        if not 0 <= self.budget < 1:
            raise BadInput(f"{self.name}: budget={self.budget}: must be from 0 to below 1")

    @abstractmethod
    def token_of(self, prompt: Prompt) -> tuple[int]:
        """Where the direction is measured, and the score read."""

    @abstractmethod
    def scores(
        self,
        artefact: Artefact,
        layers: Sequence[int],
        model: Model,
        asked: Sequence[Messages],
        interventions: Sequence[Change] = (),
    ) -> list[float]:
        """Of each conversation, in units of cosine."""

    @abstractmethod
    def by_layer(
        self, artefact: Artefact, layers: Sequence[int], model: Model, texts: Sequence[str]
    ) -> Tensor:
        """(N, K) scores of plain requests at each of K layers, read in the same passes."""

    def fit(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Directions from a third, layer and threshold from another third, and a check on the rest.

        Raises:
            BadInput: a layer that is not there, or too few behaviours.
        """
        wrong = [layer for layer in self.layers if not 0 <= layer < model.n_layers]
        if wrong:
            raise BadInput(f"{self.name}: no layer {wrong[0]}; there are {model.n_layers}")
        rows, rest = halves(train, rng=rng, held_out=2 / 3)
        chosen, last = halves(rest, rng=rng)
        layers = self.layers or tuple(range(model.n_layers))
        tensors = self._directions(model, rows, layers)
        best, notes = layers, []
        if not self.layers:
            areas = self._areas(model, Artefact(tensors), layers, chosen)
            best = (layers[areas.index(max(areas))],)
            if areas[0] >= max(areas) - _AS_GOOD:
                notes.append(
                    "after the first block the training sets are told apart as well as anywhere "
                    f"(AUC {areas[0]:.3f}), which may be how they differ in style: harmless "
                    "requests of other sets may be blocked"
                )
        kept = {f"{what}.{at}": tensors[f"{what}.{at}"] for what in _TENSORS for at in best}
        threshold = threshold_between(*self._on(model, Artefact(kept), best, chosen), self.budget)
        harmless, harmful = self._on(model, Artefact(kept), best, last)
        check = checked([s - threshold for s in harmless], [s - threshold for s in harmful])
        if notes:
            check["notes"] = notes
        return Artefact(kept, {"threshold": threshold, "layers": list(best)}, check=check)

    def _areas(
        self, model: Model, artefact: Artefact, layers: Sequence[int], rows: Sequence[Behavior]
    ) -> list[float]:
        """How well each layer's scores separate the harmful of `rows` from the harmless (AUC)."""
        harmless, harmful = (
            self.by_layer(artefact, layers, model, texts_of(rows, harmful=kind)).T.tolist()
            for kind in (False, True)
        )
        return [area_under_curve(*pair) or 0.0 for pair in zip(harmless, harmful, strict=True)]

    def _on(
        self, model: Model, artefact: Artefact, layers: Sequence[int], rows: Sequence[Behavior]
    ) -> tuple[list[float], list[float]]:
        """Scores of the harmless and of the harmful ones of `rows`."""
        harmless, harmful = (
            [model.conversation(text) for text in texts_of(rows, harmful=kind)]
            for kind in (False, True)
        )
        return (
            self.scores(artefact, layers, model, harmless),
            self.scores(artefact, layers, model, harmful),
        )

    def _directions(
        self, model: Model, rows: Sequence[Behavior], layers: Sequence[int]
    ) -> dict[str, Tensor]:
        """`direction.<layer>` (D,), of length 1, and `centre.<layer>` (D,), between both means."""
        sites = [Site(layer, "resid_post") for layer in layers]
        found: dict[str, Tensor] = {}
        means = []
        for kind in (True, False):
            states = read(model, texts_of(rows, harmful=kind), sites, locate=self.token_of)
            means.append([states[site][:, 0].double().mean(0) for site in sites])
        for layer, harmful, harmless in zip(layers, *means, strict=True):
            found[f"direction.{layer}"] = normalize(harmful - harmless, dim=0).float()
            found[f"centre.{layer}"] = ((harmful + harmless) / 2).float()
        return found


@dataclass(frozen=True)
class LatentGuard(LatentCheck):
    """Blocks requests that the model represents as harmful (arXiv 2507.11878, section 5).

    Unlike in the paper the score is the cosine with the direction instead of the difference of
    cosines with both means, of one layer by default, and the threshold is chosen on held-out
    requests instead of 0. Gradients flow through the score.
    """

    name: ClassVar[str] = "latent-guard"
    summary: ClassVar[str] = "blocks requests that the model itself represents as harmful"
    adapts: ClassVar = "gradient"

    token: Literal["instruction", "last"] = "instruction"
    """Token to read: the request's last, as in the paper, or the prompt's last, where small models
    know more, and where the paper finds refusal."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token not in ("instruction", "last"):
            raise BadInput(f"latent-guard: token='{self.token}'; valid: instruction, last")

    def token_of(self, prompt: Prompt) -> tuple[int]:
        """The request's or the prompt's last token."""
        return at_last(prompt) if self.token == "last" else at_last_instruction(prompt)

    def scores(
        self,
        artefact: Artefact,
        layers: Sequence[int],
        model: Model,
        asked: Sequence[Messages],
        interventions: Sequence[Change] = (),
    ) -> list[float]:
        """One pass for each conversation."""
        return excesses(model, asked, partial(self._excess, artefact, layers, 0.0), interventions)

    def by_layer(
        self, artefact: Artefact, layers: Sequence[int], model: Model, texts: Sequence[str]
    ) -> Tensor:
        """In batches."""
        sites = [Site(layer, "resid_post") for layer in layers]
        states = read(model, texts, sites, locate=self.token_of)
        own = torch.stack([states[site] for site in sites], dim=2).to(model.device)
        return cosines(own, *fitted_rows(artefact, layers, model))[:, 0]

    def around(self, model: Model, artefact: Artefact) -> Model:
        """A check in front of the model."""
        from attacks.core.model import ShieldedModel

        layers, threshold = artefact.data["layers"], artefact.data["threshold"]
        excess = partial(self._excess, artefact, layers, threshold)
        check = Check(self.name, REFUSAL, self.weight, self.margin, excess)
        return ShieldedModel(model, [check])

    def _excess(
        self,
        artefact: Artefact,
        layers: Sequence[int],
        threshold: float,
        model: Model,
        prompt: Prompt,
    ) -> Bound:
        sites = tuple(Site(layer, "resid_post", self.token_of(prompt)) for layer in layers)
        return _Harmful(sites, *fitted_rows(artefact, layers, model), threshold)


def cosines(states: Tensor, directions: Tensor, centres: Tensor) -> Tensor:
    """(B, P, K) of residual streams (B, P, K, D) with directions, from centres, both (K, D)."""
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    away = states - centres.to(states.dtype)
    return cosine_similarity(away, directions.to(states.dtype), dim=-1)


def fitted_rows(artefact: Artefact, layers: Sequence[int], model: Model) -> tuple[Tensor, Tensor]:
    """(K, D) directions and (K, D) centres, on the model's device."""
    directions, centres = (
        torch.stack([artefact.tensors[f"{what}.{layer}"] for layer in layers]).to(model.device)
        for what in _TENSORS
    )
    return directions, centres


@dataclass(frozen=True, eq=False)
class _Harmful(Bound):
    sites: tuple[Site, ...]
    directions: Tensor
    """(K, D)"""
    centres: Tensor
    """(K, D)"""
    threshold: float

    @property
    def reads(self) -> tuple[Site, ...]:
        return self.sites

    def __call__(self, trace: Trace) -> Tensor:
        states = torch.stack([trace[site] for site in self.sites], dim=2)
        return cosines(states, self.directions, self.centres).mean(2)[:, 0] - self.threshold
