"""Refusal-direction ablation: take one direction out of everything written to the stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Generator

from attacks.attack import Artefact, Attack, Behavior, State, Step, ThreatModel
from attacks.core.directions import difference_in_means, find_refusal_direction
from attacks.core.errors import BadInput
from attacks.core.interventions import AblateDirection

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class RefusalDirection(Attack):
    """Directional ablation (Arditi et al. 2024, arXiv 2406.11717), difference in means.

    Directions come from one part of the training prompts; the layer is chosen on the rest, by the
    refusal left after ablation among those that hardly change harmless prompts.
    """

    name: ClassVar[str] = "refusal-direction"
    summary: ClassVar[str] = "ablates the difference-in-means refusal direction at every write"
    threat_model: ClassVar[ThreatModel] = ThreatModel.INTERVENTION
    needs_train: ClassVar[bool] = True
    searches: ClassVar[bool] = False

    layer: int | None = None
    """Block whose input gives the direction; none: chosen by score."""
    max_kl: float = 0.1
    """KL on harmless prompts, in nats, above which a layer is a last resort; see `choose_layer`."""

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Fit the direction; `data` holds the layer and the scores of all.

        Raises:
            BadInput: a layer that the model does not have, or too few training prompts.
        """
        if self.layer is not None and not 0 <= self.layer < model.n_layers:
            raise BadInput(
                f"refusal-direction: layer {self.layer} is not in 0..{model.n_layers - 1}"
            )
        harmful, harmless = ([b.text for b in train if b.harmful == flag] for flag in (True, False))
        if self.layer is not None:
            directions = difference_in_means(model, harmful, harmless)
            return Artefact({"direction": directions[self.layer]}, {"layer": self.layer})
        found = find_refusal_direction(model, harmful, harmless, rng=rng, max_kl=self.max_kl)
        scores = [asdict(score) for score in found.scores]
        return Artefact({"direction": found.direction}, {"layer": found.layer, "scores": scores})

    def run(
        self,
        model: Model,
        behavior: Behavior,
        *,
        artefact: Artefact,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[Step]:
        """One step: the plain conversation with the direction ablated."""
        ablation = AblateDirection(artefact.tensors["direction"], model.n_layers)
        yield Step((model.conversation(behavior.text),), (ablation,))
