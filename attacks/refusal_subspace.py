"""A refusal subspace, fitted by gradient: remove it from the activations or from the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Generator, Tensor

from attacks.attack import Artefact, Behavior, ChangeAttack, ThreatModel
from attacks.core.interventions import AblateSubspace
from attacks.core.refusals.subspace import find_refusal_subspace
from attacks.core.weights import Change, OrthogonaliseSubspace

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class RefusalSubspace(ChangeAttack):
    """Directions fitted by gradient and ablated at every residual write (arXiv 2502.17420).

    While a difference in means is read off the activations, these are fitted to the effect of
    ablating them: the targets of harmful training requests become likely, and the model's own
    answers to harmless ones are preserved. The smallest number of directions that passes a check on
    held-out prompts is used; the artefact's `check` has the evidence and reports when none passes.
    """

    name: ClassVar[str] = "refusal-subspace"
    summary: ClassVar[str] = "ablates a refusal subspace fitted by gradient"
    needs_train: ClassVar[bool] = True

    dimensions: int = 0
    """Number of directions; 0: the first of 1, 2 and 4 that suffices."""
    source: Literal["gradient", "means"] = "gradient"
    """"gradient", or "means": the principal components of the differences between harmful prompts
    and the mean of the harmless ones, the gradient-free control."""
    fit_steps: int = 150
    """Maximum steps of Adam."""
    fit_batch: int = 8
    """Harmful and harmless dialogues in each step."""

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Fit the subspace; `data` holds what was tried, `check` the verdict on what was chosen.

        Raises:
            BadInput: too few training behaviours, or a parameter that is out of range.
        """
        found = find_refusal_subspace(
            model,
            train,
            rng=rng,
            dimensions=self.dimensions,
            source=self.source,
            steps=self.fit_steps,
            batch=self.fit_batch,
            use=lambda basis: self._change(model, basis),
        )
        data = {"dimensions": len(found.basis), "source": self.source, "tried": list(found.tried)}
        return Artefact({"basis": found.basis}, data, check=found.check.data)

    def change(self, model: Model, artefact: Artefact) -> Change:
        """The subspace ablated, or taken out of the weights."""
        return self._change(model, artefact.tensors["basis"])

    def _change(self, model: Model, basis: Tensor) -> Change:
        return AblateSubspace(basis, model.n_layers)


@dataclass(frozen=True)
class RefusalSubspaceWeights(RefusalSubspace):
    """The same (arXiv 2502.17420) removed from all weights that write to the residual stream."""

    name: ClassVar[str] = "refusal-subspace-weights"
    summary: ClassVar[str] = "orthogonalises the weights to a refusal subspace fitted by gradient"
    threat_model: ClassVar[ThreatModel] = ThreatModel.WEIGHTS

    def _change(self, model: Model, basis: Tensor) -> Change:
        return OrthogonaliseSubspace(basis)
