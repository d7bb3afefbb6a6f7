"""Abliteration: a direction taken out of the weights by degrees, and the search for the degrees."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Generator, Tensor

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.reading.answers import answers
from attacks.core.reading.states import last_token, next_token_log_probs
from attacks.core.refusals.choice import DEPTH
from attacks.core.refusals.directions import mean_kl
from attacks.core.refusals.openers import learn_openers, opener_tokens, opens_with_refusal
from attacks.core.sites import Site
from attacks.core.weights import Abliterate

if TYPE_CHECKING:
    from attacks.core.model import Model

Mode = Literal["plain", "projected", "norm-preserving"]

#: Share of the trials that are drawn at random before the sampler models them, and the candidates
#: that it then compares for each (the settings of the tool, as arXiv 2512.13655 lists them).
_RANDOM, _COMPARED = 0.3, 128


@dataclass(frozen=True)
class Kernel:
    """Strength by layer: highest at one, falling linearly on both sides, 0 beyond a distance.

    Positions are relative to the depth, from 0 for the first block to 1 for the last.
    """

    w_max: float = 1.0
    """At `position`; 1 removes the direction entirely."""
    w_min: float = 1.0
    """At `distance` from `position`."""
    position: float = 0.5
    """Where the strength is highest."""
    distance: float = 0.5
    """Beyond it the strength is 0."""

    def strengths(self, n_layers: int) -> tuple[float, ...]:
        """(L,) of the blocks.

        Raises:
            BadInput: a distance under 0.
        """
        if self.distance < 0:
            raise BadInput(f"abliteration: distance {self.distance} is under 0")
        found = []
        for layer in range(n_layers):
            off = abs(layer / max(n_layers - 1, 1) - self.position)
            share = min(off / self.distance, 1.0) if self.distance else 0.0
            # A hair of tolerance, since the edge is where many kernels end.
            inside = off <= self.distance + 1e-9
            found.append(self.w_max + share * (self.w_min - self.w_max) if inside else 0.0)
        return tuple(found)


def layer_directions(
    model: Model, harmful: Sequence[str], harmless: Sequence[str], *, projected: bool
) -> Tensor:
    """(L, D) unit differences in means at each block's output, last token, harmful minus harmless.

    Args:
        model: the model.
        harmful: prompts.
        harmless: prompts.
        projected: take the component along the mean of the harmless prompts out of each.
    """
    sites = [Site(layer, "resid_post") for layer in range(model.n_layers)]
    means = []
    for texts in (harmful, harmless):
        states = last_token(model, texts, sites)
        means.append(torch.stack([states[site].double().mean(0) for site in sites]))
    directions = means[0] - means[1]
    if projected:
        along = torch.nn.functional.normalize(means[1], dim=1)
        directions = directions - (directions * along).sum(1, keepdim=True) * along
    return torch.nn.functional.normalize(directions, dim=1).float()


def one_direction(directions: Tensor, depth: float) -> Tensor:
    """(L, D) the direction at one depth, from 0 to 1, for every block.

    Between two layers the two are interpolated.
    """
    place = depth * (len(directions) - 1)
    low = min(int(place), len(directions) - 1)
    high = min(low + 1, len(directions) - 1)
    mixed = torch.lerp(directions[low], directions[high], place - low)
    return torch.nn.functional.normalize(mixed, dim=0).expand(len(directions), -1).contiguous()


def shallow_depths(n_layers: int) -> list[float | None]:
    """Depths of the blocks in the first four fifths."""
    blocks = range(max(int(DEPTH * n_layers), 1))
    return [block / max(n_layers - 1, 1) for block in blocks]


@dataclass(frozen=True)
class Recipe:
    """What an edit is made of."""

    depth: float | None
    """Where the one direction is from; None: each block's own."""
    attention: Kernel
    mlp: Kernel

    def edit(self, directions: Tensor, mode: Mode) -> Abliterate:
        """The edit with these unit directions (L, D)."""
        if self.depth is not None:
            directions = one_direction(directions, self.depth)
        return Abliterate(
            directions,
            self.attention.strengths(len(directions)),
            self.mlp.strengths(len(directions)),
            keep_norms=mode == "norm-preserving",
        )


class Yardstick:
    """What edits are held to: refusals and KL on held-out prompts (arXiv 2512.13655, section 3)."""

    def __init__(self, model: Model, train: Sequence[Behavior], held_out: Sequence[Behavior]):
        """Learn the refusal openers and read the unchanged model.

        Args:
            model: the model.
            train: what the openers are learned from.
            held_out: harmful ones count refusals, harmless ones that the model answers KL.
        """
        self.model = model
        self.harmful, self.harmless = (
            [row.text for row in held_out if row.harmful == flag] for flag in (True, False)
        )
        self.openers = learn_openers(model, train)
        said = answers(model, self.harmless, tokens=opener_tokens(self.openers))
        answered = [
            text
            for text, answer in zip(self.harmless, said, strict=True)
            if not opens_with_refusal(answer, self.openers)
        ]
        # To answer what was refused is no damage; where all is refused there is nothing else.
        self.harmless = answered or self.harmless
        self._before = next_token_log_probs(model, self.harmless)

    def refusals(self, edit: Abliterate) -> int:
        """Answers to harmful prompts that, after thinking, open with a refusal or are empty."""
        tokens = opener_tokens(self.openers)
        said = answers(self.model, self.harmful, tokens=tokens, interventions=[edit])
        return sum(not text or opens_with_refusal(text, self.openers) for text in said)

    def kl(self, edit: Abliterate) -> float:
        """Mean KL(as it was || edited) of the first token on harmless prompts, nats."""
        after = next_token_log_probs(self.model, self.harmless, interventions=[edit])
        return mean_kl(self._before, after)

    def measure(self, recipe: Recipe, directions: Tensor, mode: Mode) -> Outcome:
        """Both, of one recipe."""
        edit = recipe.edit(directions, mode)
        with self.model.editing([edit]):
            return Outcome(recipe, self.refusals(edit), len(self.harmful), self.kl(edit))


@dataclass(frozen=True)
class Outcome:
    """A recipe and what it does to held-out prompts."""

    recipe: Recipe
    refusals: int
    harmful: int
    """Prompts that could have been refused."""
    kl: float


def pareto_front(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that no other beats or equals in both refusals and KL, fewest refusals first."""
    front: list[Outcome] = []
    for outcome in sorted(outcomes, key=lambda one: (one.refusals, one.kl)):
        if not front or outcome.kl < front[-1].kl:
            front.append(outcome)
    return front


def choose(front: Sequence[Outcome], *, max_kl: float) -> Outcome:
    """The fewest refusals at a KL of at most `max_kl`, if it halves them, or else a trade-off.

    The trade-off is the lowest sum of the share of refusals left and the KL in nats: an edit that
    undoes all refusals by breaking the model is worse than one that leaves a few.
    """
    gentle = [
        outcome
        for outcome in front
        if outcome.kl <= max_kl and 2 * outcome.refusals <= outcome.harmful
    ]
    if gentle:
        return gentle[0]
    return min(front, key=lambda outcome: outcome.refusals / max(outcome.harmful, 1) + outcome.kl)


def search(
    yardstick: Yardstick, directions: Tensor, mode: Mode, *, trials: int, rng: Generator
) -> list[Outcome]:
    """Recipes tried by a multivariate tree-structured Parzen estimator, one for each trial.

    The parameters and their ranges are those of Heretic, as arXiv 2512.13655 describes it: one
    direction or one for each block, and for each component the kernel.

    Raises:
        BadInput: optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise BadInput(
            "abliteration with trials needs optuna: pip install 'reroute-bench[abliteration]'"
        ) from error
    found: list[Outcome] = []

    def kernel(trial: Any, name: str, low: float) -> Kernel:
        w_max = max(0.0, trial.suggest_float(f"{name}.w_max", low, 1.5))
        share = trial.suggest_float(f"{name}.w_min", 0.0, 1.0)
        position = trial.suggest_float(f"{name}.position", 0.6, 1.0)
        least = min(1 / max(len(directions) - 1, 1), 0.6)
        distance = trial.suggest_float(f"{name}.distance", least, 0.6)
        return Kernel(w_max, share * w_max, position, distance)

    def objective(trial: Any) -> tuple[float, float]:
        # Suggested in any case, since the sampler models all parameters together.
        depth = trial.suggest_float("depth", 0.4, 0.9)
        scope = trial.suggest_categorical("scope", ["global", "layer"])
        recipe = Recipe(
            depth if scope == "global" else None,
            kernel(trial, "attention", 0.8),
            kernel(trial, "mlp", -0.25),
        )
        found.append(yardstick.measure(recipe, directions, mode))
        return float(found[-1].refusals), found[-1].kl

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=int(torch.randint(2**31, (), generator=rng)),
                n_startup_trials=max(1, round(_RANDOM * trials)),
                n_ei_candidates=_COMPARED,
                multivariate=True,
            )
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        study.optimize(objective, n_trials=trials)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return found
