"""Abliteration: refusal directions removed from the output projections, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Generator

from attacks.attack import Artefact, Behavior, ChangeAttack, ThreatModel
from attacks.core.errors import BadInput
from attacks.core.refusals.abliteration import (
    Kernel,
    Mode,
    Recipe,
    Yardstick,
    choose,
    layer_directions,
    pareto_front,
    search,
    shallow_depths,
)
from attacks.core.refusals.verdicts import Examiner
from attacks.core.weights import Abliterate, Change

if TYPE_CHECKING:
    from attacks.core.model import Model


_EVEN = Kernel()


@dataclass(frozen=True)
class Abliteration(ChangeAttack):
    """Directional weight edits as in common tools (compared in arXiv 2512.13655).

    Unit differences in means at the blocks' outputs are removed from attention's output projection
    and the MLP's down projection with a strength for each layer. Embeddings and biases are
    unchanged, so the direction still occurs in the stream. With `trials` the strengths are
    searched, trading off refusals against the change on harmless prompts, and the artefact keeps
    the Pareto front.
    """

    name: ClassVar[str] = "abliteration"
    summary: ClassVar[str] = (
        "removes refusal directions from the output projections, with a strength per layer"
    )
    threat_model: ClassVar[ThreatModel] = ThreatModel.WEIGHTS
    needs_train: ClassVar[bool] = True

    mode: Mode = "plain"
    """plain: W - strength r r^T W. projected: r without its component along the harmless mean.
    norm-preserving: the rows keep their lengths."""
    scope: Literal["global", "layer"] = "global"
    """One direction for all blocks, or a separate one for each block."""
    depth: float | None = None
    """With one direction: the block whose output gives it, from 0 to 1 of the depth; none: chosen
    among those of the first four fifths, as with trials."""
    attention: Kernel = _EVEN
    """Strength by layer on attention's output projections."""
    mlp: Kernel = _EVEN
    """Strength by layer on the MLPs' down projections."""
    trials: int = 0
    """Trials of the search for depth and strengths, which needs optuna; 0: no search."""
    max_kl: float = 0.5
    """KL on harmless prompts, in nats, below which fewer refusals are preferred."""

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Fit directions on three quarters of the prompts; measure, or search, on the rest.

        `data` holds `chosen`, a recipe with its refusals and KL on held-out prompts, and `front`, a
        list of all those among the tried that no other beats (`reroute pareto` shows it).

        Raises:
            BadInput: too few training prompts, a depth outside 0..1, or no optuna for a search.
        """
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise BadInput(f"abliteration: depth {self.depth} is not in 0..1")
        fit: list[Behavior] = []
        held_out: list[Behavior] = []
        for flag in (True, False):
            rows = [row for row in train if row.harmful == flag]
            if len(rows) < 4:
                raise BadInput(
                    "abliteration needs at least 4 harmful and 4 harmless training behaviours"
                )
            order = torch.randperm(len(rows), generator=rng).tolist()
            held_out += [rows[at] for at in order[: len(rows) // 4]]
            fit += [rows[at] for at in order[len(rows) // 4 :]]
        directions = layer_directions(
            model,
            [row.text for row in fit if row.harmful],
            [row.text for row in fit if not row.harmful],
            projected=self.mode == "projected",
        )
        yardstick = Yardstick(model, fit, held_out)
        depths: list[float | None] = [None]
        if self.scope == "global":
            depths = [self.depth] if self.depth is not None else shallow_depths(model.n_layers)
        recipes = [Recipe(depth, self.attention, self.mlp) for depth in depths]
        outcomes = [yardstick.measure(recipe, directions, self.mode) for recipe in recipes]
        if self.trials:
            outcomes += search(yardstick, directions, self.mode, trials=self.trials, rng=rng)
        front = pareto_front(outcomes)
        best = choose(front, max_kl=self.max_kl)
        edit = best.recipe.edit(directions, self.mode)
        strengths = {
            name: torch.tensor(getattr(edit, name), dtype=torch.float64)
            for name in ("attention", "mlp")
        }
        data = {
            "mode": self.mode,
            "chosen": asdict(best),
            "front": [asdict(outcome) for outcome in front],
        }
        check = Examiner(model, fit, held_out).check([edit])
        return Artefact({"directions": edit.directions, **strengths}, data, check=check.data)

    def change(self, model: Model, artefact: Artefact) -> Change:
        """The directions removed from the output projections."""
        attention, mlp = (tuple(artefact.tensors[name].tolist()) for name in ("attention", "mlp"))
        return Abliterate(
            artefact.tensors["directions"],
            attention,
            mlp,
            keep_norms=self.mode == "norm-preserving",
        )
