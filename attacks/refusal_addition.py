"""Refusal removed by adding a vector, fitted by gradient, at one block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Generator

from attacks.attack import Artefact, Behavior, ChangeAttack
from attacks.core.interventions import AddDirection
from attacks.core.refusals.addition import find_refusal_addition
from attacks.core.weights import Change

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class RefusalAddition(ChangeAttack):
    """A vector fitted by gradient and added at one block's input (arXiv 2502.17420).

    The counterpart by addition of `refusal-subspace`, and of `refusal-direction:mode="add"`, whose
    difference in means is its starting point. The artefact's `check` has the evidence, and
    `induced` is the share of harmless prompts refused when the vector is subtracted instead.
    """

    name: ClassVar[str] = "refusal-addition"
    summary: ClassVar[str] = "adds a vector at one block, fitted by gradient to remove refusal"
    needs_train: ClassVar[bool] = True

    layer: int | None = None
    """Block at whose input it is added; none: the best start among four blocks."""
    fit_steps: int = 150
    """Maximum steps of Adam; 0 keeps the difference in means."""
    fit_batch: int = 8
    """Harmful and harmless dialogues in each step."""

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Fit the vector; `data` holds its block, `induced` and what was tried.

        Raises:
            BadInput: too few training behaviours, or a parameter that is out of range.
        """
        found = find_refusal_addition(
            model,
            train,
            rng=rng,
            layer=self.layer,
            steps=self.fit_steps,
            batch=self.fit_batch,
        )
        data = {"layer": found.layer, "induced": found.induced, "tried": list(found.tried)}
        return Artefact({"vector": found.vector}, data, check=found.check.data)

    def change(self, model: Model, artefact: Artefact) -> Change:
        """The vector added at every position of its block's input."""
        return AddDirection(artefact.tensors["vector"], artefact.data["layer"], 1.0)
