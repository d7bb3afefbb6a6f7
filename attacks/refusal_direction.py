"""Refusal-direction ablation: take one direction out of everything written to the stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator

from attacks.attack import Artefact, Attack, Behavior, State, Step, ThreatModel
from attacks.core.directions import choose_layer, difference_in_means, score_ablations
from attacks.core.errors import BadInput
from attacks.core.interventions import AblateDirection
from attacks.core.refusal import refusal_tokens
from attacks.core.states import next_token_log_probs

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
    """Largest KL on harmless prompts, in nats, of a layer that may be chosen."""

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Fit the direction; `data` holds the layer and the scores of all.

        Raises:
            BadInput: a layer that the model does not have, or too few training prompts.
        """
        if self.layer is not None and not 0 <= self.layer < model.n_layers:
            raise BadInput(
                f"refusal-direction: layer {self.layer} is not in 0..{model.n_layers - 1}"
            )
        texts = [[b.text for b in train if b.harmful == flag] for flag in (True, False)]
        if min(map(len, texts)) < 4:
            raise BadInput(
                "refusal-direction: needs at least 4 harmful and 4 harmless training behaviours, "
                f"got {len(texts[0])} and {len(texts[1])}"
            )
        (harmful, check_harmful), (harmless, check_harmless) = (
            _split(group, rng) for group in texts
        )
        directions = difference_in_means(model, harmful, harmless)
        if self.layer is not None:
            return Artefact({"direction": directions[self.layer]}, {"layer": self.layer})
        openers = refusal_tokens(
            next_token_log_probs(model, harmful), next_token_log_probs(model, harmless), most=8
        )
        scores = score_ablations(model, directions, check_harmful, check_harmless, openers)
        chosen = choose_layer(scores, model.n_layers, max_kl=self.max_kl)
        table = [asdict(score) for score in scores]
        return Artefact(
            {"direction": directions[chosen.layer]}, {"layer": chosen.layer, "scores": table}
        )

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


def _split(texts: Sequence[str], rng: Generator) -> tuple[list[str], list[str]]:
    """Three quarters to fit on and one to choose by."""
    order = torch.randperm(len(texts), generator=rng).tolist()
    held = max(1, len(texts) // 4)
    return [texts[at] for at in sorted(order[held:])], [texts[at] for at in sorted(order[:held])]
