"""Conditional steering: add the refusal direction where the model detects harm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import cosine_similarity, normalize

from attacks.core.artefact import Artefact
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.interventions import Context, Intervention
from attacks.core.prompt import INSTRUCTION, POST_INSTRUCTION, Prompt
from attacks.core.reading.states import at_last, at_last_instruction, next_token_log_probs, read
from attacks.core.refusals.harmfulness import two_directions
from attacks.core.refusals.openers import refusal_score, refusal_tokens
from attacks.core.sites import Site
from benchmarks.common.roc import area_under_curve
from benchmarks.defenses.defense import Defense, texts_of
from benchmarks.defenses.thresholds import checked, halves, threshold_between

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class ConditionalSteering(Defense):
    """Adds the refusal direction when the harmfulness score fires (after arXiv 2409.05907).

    At the input of one block: where the score of Latent Guard at `token` is above the threshold,
    the difference of means between harmful and harmless requests at the prompt's last token is
    added to all tokens of the template after the request. The gate is a sigmoid, so that gradients
    flow through it. Unlike in the paper condition and refusal are read in one layer, and generated
    tokens are not steered: they attend to the steered ones. The layer is the one at which an open
    gate makes the model refuse most harmless requests, among those whose scores discriminate best.
    """

    name: ClassVar[str] = "steering"
    summary: ClassVar[str] = "adds the refusal direction where the model detects harm"
    adapts: ClassVar = "gradient"
    changes: ClassVar[bool] = True
    needs_train: ClassVar[bool] = True

    layer: int | None = None
    """Block at whose input it acts; none: chosen on training behaviours."""
    coefficient: float = 1.5
    """Strength, in units of the measured refusal direction."""
    sharpness: float = 50.0
    """Slope of the gate: how much it opens per unit of cosine."""
    token: Literal["instruction", "last"] = "last"
    """Where harmfulness is read: at the request's last token, or at the prompt's."""
    budget: float = 0.02
    """Share of held-out harmless requests that may trigger it at the chosen threshold."""

    def __post_init__(self) -> None:
        if self.token not in ("instruction", "last"):
            raise BadInput(f"steering: token='{self.token}'; valid: instruction, last")
        if self.sharpness <= 0:
            raise BadInput(f"steering: sharpness={self.sharpness}: must be above 0")

    def fit(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Directions from a third, layer and threshold from another third, and a check on the rest.

        Raises:
            BadInput: a layer that is not there, or too few behaviours.
        """
        if self.layer is not None and not 0 < self.layer < model.n_layers:
            raise BadInput(f"steering: no layer {self.layer}; valid: 1 to {model.n_layers - 1}")
        rows, rest = halves(train, rng=rng, held_out=2 / 3)
        chosen, last = halves(rest, rng=rng)
        layers = range(1, model.n_layers) if self.layer is None else [self.layer]
        sites = [Site(layer, "resid_pre") for layer in layers]
        harmful, harmless = texts_of(rows, harmful=True), texts_of(rows, harmful=False)
        refusal = two_directions(model, harmful, harmless).refusal
        log_probs = next_token_log_probs(model, [*harmful, *harmless])
        openers = refusal_tokens(log_probs[: len(harmful)], log_probs[len(harmful) :], most=8)
        means = [self._states(model, texts, sites) for texts in (harmful, harmless)]
        tests = {
            kind: self._states(model, texts_of(chosen, harmful=kind), sites)
            for kind in (True, False)
        }
        best: tuple[float, float] = (-1.0, -1.0)
        made = Artefact()
        for layer, site in zip(layers, sites, strict=True):
            mean_harmful, mean_harmless = (found[site].mean(0) for found in means)
            direction = normalize(mean_harmful - mean_harmless, dim=0).float()
            centre = ((mean_harmful + mean_harmless) / 2).float()
            low, high = (
                cosine_similarity(tests[kind][site].float() - centre, direction, dim=1).tolist()
                for kind in (False, True)
            )
            threshold = threshold_between(low, high, self.budget)
            tensors = {"direction": direction, "centre": centre, "refusal": refusal[layer]}
            tried = Artefact(tensors, {"layer": layer, "threshold": threshold})
            ajar = self._steer(tried, threshold=-2.0)
            steered = next_token_log_probs(
                model, texts_of(chosen, harmful=False), interventions=[ajar]
            )
            induced = float((refusal_score(steered, openers) > 0).float().mean())
            standing = (round(area_under_curve(low, high) or 0.0, 2), induced)
            if standing > best:
                best, made = standing, tried
        site = Site(made.data["layer"], "resid_pre")
        found = []
        for kind in (False, True):
            states = self._states(model, texts_of(last, harmful=kind), [site])[site].float()
            away = states - made.tensors["centre"]
            scores = cosine_similarity(away, made.tensors["direction"], dim=1)
            found.append((scores - made.data["threshold"]).tolist())
        check = {**checked(*found), "induced": best[1]}
        return Artefact(made.tensors, made.data, check=check)

    def around(self, model: Model, artefact: Artefact) -> Model:
        """The model as it is steered."""
        return model.changed([self._steer(artefact)])

    def _states(
        self, model: Model, texts: Sequence[str], sites: Sequence[Site]
    ) -> dict[Site, Tensor]:
        """{site: (N, D) float64} at the token where harmfulness is read."""
        found = read(model, texts, sites, locate=self._token_of)
        return {site: values[:, 0].double() for site, values in found.items()}

    def _token_of(self, prompt: Prompt) -> tuple[int]:
        return at_last(prompt) if self.token == "last" else at_last_instruction(prompt)

    def _steer(self, artefact: Artefact, *, threshold: float | None = None) -> Steer:
        return Steer(
            artefact.data["layer"],
            artefact.tensors["direction"],
            artefact.tensors["centre"],
            self.coefficient * artefact.tensors["refusal"],
            artefact.data["threshold"] if threshold is None else threshold,
            self.sharpness,
            POST_INSTRUCTION if self.token == "last" else INSTRUCTION,
        )


@dataclass(frozen=True, eq=False)
class Steer(Intervention):
    """x + sigmoid(sharpness (cos(x_t - centre, direction) - threshold)) shift, after the request.

    t is the last token with the role `read_at`; x the tokens of the template after the request.
    """

    layer: int
    direction: Tensor
    """(D,)"""
    centre: Tensor
    """(D,)"""
    shift: Tensor
    """(D,)"""
    threshold: float
    sharpness: float
    read_at: int

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site(self.layer, "resid_pre"),)

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        if ctx.step > 0:
            return activation
        if ctx.roles is None:
            raise BadInput("conditional steering needs a pass that knows the roles")
        roles = ctx.roles.to(activation.device)
        after, places = roles == POST_INSTRUCTION, roles == self.read_at
        if not (after.any() and places.any()):
            return activation
        order = torch.arange(roles.shape[1], device=roles.device)
        at = torch.where(places, order, -1).amax(1).expand(len(activation))
        states = activation[torch.arange(len(activation), device=at.device), at]
        direction, centre, shift = (
            row.to(activation) for row in (self.direction, self.centre, self.shift)
        )
        scores = cosine_similarity(states - centre, direction, dim=-1)
        gate = torch.sigmoid(self.sharpness * (scores - self.threshold))
        return activation + (gate[:, None] * after).unsqueeze(-1) * shift
