"""Which refusal direction to use: filters, and a trade-off of refusals left and damage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from attacks.core.errors import BadInput

#: What a direction is wanted for.
Purpose: TypeAlias = Literal["ablate", "induce"]
#: Share of the layers from which on directions are left out (arXiv 2406.11717, appendix C).
DEPTH = 0.8


@dataclass(frozen=True)
class DirectionScore:
    """What the direction of one position and layer does to held-out prompts."""

    position: int
    """Counted from the end of the prompt, -1 the last token."""
    layer: int
    """Block whose input it was read at."""
    bypass: float
    """Mean refusal score on harmful prompts once it is ablated; the lower the fewer refusals."""
    kl: float
    """Mean KL(as it was || ablated) of the first token on harmless prompts, nats."""
    induce: float
    """Mean refusal score on harmless prompts once it is added; the higher the more refusals."""
    left: float
    """Mean probability that an answer to a harmful prompt opens with a refusal, once ablated."""

    @property
    def cost(self) -> float:
        """Refusals left plus damage in nats: what the trade-off of `choose_direction` goes by."""
        return self.left + self.kl


def least_induced(refused: float, answered: float) -> float:
    """The induce score from which refusal counts as induced; see `choose_direction`.

    Args:
        refused: mean refusal score of harmful prompts.
        answered: mean refusal score of harmless prompts.
    """
    # Where nothing is refused there is nothing to be halfway to.
    return min(0.0, (refused + answered) / 2) if refused > 0 else 0.0


def choose_direction(
    scores: Sequence[DirectionScore],
    n_layers: int,
    *,
    max_kl: float,
    least: float = 0.0,
    purpose: Purpose = "ablate",
) -> tuple[DirectionScore, tuple[str, ...]]:
    """The direction with the lowest bypass score among those that pass the filters, or a trade-off.

    The paper's filters (arXiv 2406.11717, appendix C) leave out layers from 0.8 of the depth on,
    directions whose ablation changes harmless prompts by more than `max_kl`, and those whose
    addition does not induce refusal. Where they leave nothing that bypasses refusal (a bypass
    score under 0: the first token opens a refusal in less than half of the cases), no filter is
    given up for its own sake: taken is the point of the Pareto front of refusals left and damage
    with the lowest sum of both, a probability and nats (`DirectionScore.cost`). So a
    direction that breaks the model (several nats) is never taken for one that removes refusal.

    Two things are not the paper's. It adds the direction that was chosen for ablation; what is to
    induce refusal is here the highest induce score among those that pass the filter on depth and
    bypass refusal. Where none of these induces it, the latter is given up, then depth too; where
    none does at all, it is the highest that the filter on depth leaves. And `least` may be under 0.

    Args:
        scores: of all directions.
        n_layers: of the model.
        max_kl: in nats.
        least: induce score from which refusal counts as induced. The paper's is 0, which a model
            that spreads part of its refusals' first token over many tokens reaches nowhere:
            `least_induced` asks for no more than halfway from how harmless prompts score to how
            harmful ones do.
        purpose: "ablate" (or subtract), or "induce" by addition.

    Returns:
        The choice, and the names of the filters that it does not pass.

    Raises:
        BadInput: no scores, since harmful and harmless prompts have the same states.
    """
    if not scores:
        raise BadInput("harmful and harmless prompts have the same states: there is no direction")
    passes: dict[str, Callable[[DirectionScore], bool]] = {
        "depth": lambda score: score.layer < DEPTH * n_layers,
        "kl": lambda score: score.kl <= max_kl,
        "induce": lambda score: score.induce >= least,
        "bypass": lambda score: score.bypass < 0,
    }

    def left(*held: str) -> list[DirectionScore]:
        return [score for score in scores if all(passes[name](score) for name in held)]

    if purpose == "induce":
        wanted = ("depth", "bypass", "induce")
        for held in (wanted, ("depth", "induce"), ("induce",), ("depth",), ()):
            if found := left(*held):
                given_up = tuple(name for name in wanted if name not in held)
                return max(found, key=lambda score: score.induce), given_up
    filters = ("depth", "kl", "induce")
    if found := left(*filters, "bypass"):
        return min(found, key=lambda score: (score.bypass, score.kl)), ()
    best = min(scores, key=lambda score: score.cost)
    return best, tuple(name for name in filters if not passes[name](best))
