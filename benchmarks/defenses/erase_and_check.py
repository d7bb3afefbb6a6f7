"""Erase-and-check: block requests that look harmful once their last tokens are erased."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from attacks.core.artefact import Artefact
from attacks.core.errors import BadInput
from attacks.core.prompt import INSTRUCTION, Messages, Prompt
from attacks.core.reading.states import at_last, read_at
from attacks.core.shields import BlackBox
from attacks.core.sites import Site
from attacks.core.weights import Change
from benchmarks.defenses.defense import REFUSAL
from benchmarks.defenses.latent_guard import LatentCheck, cosines, fitted_rows

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class EraseAndCheck(LatentCheck):
    """Blocks a request if it, or what is left after erasing its last tokens, looks harmful.

    Erase-and-check in suffix mode (arXiv 2309.02705, section 3): a suffix of up to `erased` tokens
    hides nothing that the filter finds without it. The filter is Latent Guard's score at the
    prompt's last token instead of a trained classifier, and the threshold applies to the highest
    score of the whole request and all that is left of it. An adaptive attack adds the score of its
    best candidates to their loss.
    """

    name: ClassVar[str] = "erase-and-check"
    summary: ClassVar[str] = "blocks requests that look harmful after erasing up to N last tokens"
    adapts: ClassVar = "search"

    erased: int = 20
    """Maximum number of tokens erased; the first of a request is always left."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.erased < 1:
            raise BadInput(f"erase-and-check: erased={self.erased}: must be at least 1")

    def token_of(self, prompt: Prompt) -> tuple[int]:
        """The prompt's last token."""
        return at_last(prompt)

    def scores(
        self,
        artefact: Artefact,
        layers: Sequence[int],
        model: Model,
        asked: Sequence[Messages],
        interventions: Sequence[Change] = (),
    ) -> list[float]:
        """The highest of all that is left of a request."""
        return [
            float(self._left(artefact, layers, model, turns, interventions).mean(2).max())
            for turns in asked
        ]

    def by_layer(
        self, artefact: Artefact, layers: Sequence[int], model: Model, texts: Sequence[str]
    ) -> Tensor:
        """The highest of all that is left of each request."""
        asked = [model.conversation(text) for text in texts]
        return torch.stack(
            [self._left(artefact, layers, model, turns).amax((0, 1)) for turns in asked]
        )

    def _left(
        self,
        artefact: Artefact,
        layers: Sequence[int],
        model: Model,
        turns: Messages,
        interventions: Sequence[Change] = (),
    ) -> Tensor:
        """(B, 1, K) cosines of all that is left of a request, in one batch."""
        sites = [Site(layer, "resid_post") for layer in layers]
        left = beginnings(*model.chat.tokens(turns), self.erased)
        states = read_at(
            model,
            [ids for ids, _ in left],
            sites,
            [(len(ids) - 1,) for ids, _ in left],
            roles=[roles for _, roles in left],
            interventions=interventions,
        )
        own = torch.stack([states[site] for site in sites], dim=2).to(model.device)
        return cosines(own, *fitted_rows(artefact, layers, model))

    def around(self, model: Model, artefact: Artefact) -> Model:
        """A check in front of the model."""
        from attacks.core.model import ShieldedModel

        layers, threshold = artefact.data["layers"], artefact.data["threshold"]

        def measure(
            model: Model, asked: Sequence[Messages], interventions: Sequence[Change]
        ) -> list[float]:
            scores = self.scores(artefact, layers, model, asked, interventions)
            return [score - threshold for score in scores]

        check = BlackBox(self.name, REFUSAL, self.weight, self.margin, measure)
        return ShieldedModel(model, [check])


def beginnings(ids: Tensor, roles: Tensor, most: int) -> list[tuple[Tensor, Tensor]]:
    """A prompt's ids and roles (T,), and those with 1 to `most` last tokens of the request erased.

    Raises:
        BadInput: no token of the request.
    """
    own = (roles == INSTRUCTION).nonzero().flatten()
    if not len(own):
        raise BadInput("no token of the prompt lies within the request; it is empty")
    found = [(ids, roles)]
    for count in range(1, min(most, len(own) - 1) + 1):
        kept = torch.ones_like(ids, dtype=torch.bool)
        kept[own[-count:]] = False
        found.append((ids[kept], roles[kept]))
    return found
