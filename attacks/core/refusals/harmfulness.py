"""Harmfulness and refusal as two directions at two tokens, and steering with each.

arXiv 2507.11878: what a model takes for harmful stands at the last token of the request, whether it
will refuse at the last token of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.interventions import AddDirection
from attacks.core.prompt import INSTRUCTION
from attacks.core.reading.states import at_last, at_last_instruction, last_token, read
from attacks.core.refusals.openers import refusal_score, refusal_tokens
from attacks.core.sites import Site

if TYPE_CHECKING:
    from attacks.core.model import Model

Kind = Literal["harmfulness", "refusal"]


@dataclass(frozen=True, eq=False)
class TwoDirections:
    """Raw differences in means at each block's input: their lengths are the unit of steering."""

    harmfulness: Tensor
    """(L, D) harmful minus harmless prompts, at the last token of the request."""
    refusal: Tensor
    """(L, D) refused minus answered prompts, at the last token of the prompt."""
    refused_harmful: int
    answered_harmful: int
    refused_harmless: int
    answered_harmless: int

    @property
    def cosines(self) -> Tensor:
        """(L,) between the two; NaN at layer 0, where the template's token is always the same."""
        lengths = self.harmfulness.norm(dim=1) * self.refusal.norm(dim=1)
        cosines: Tensor = (self.harmfulness * self.refusal).sum(1) / lengths
        return cosines

    def steering(
        self, kind: Kind, layer: int, coefficient: float, *, spare: int = 0
    ) -> AddDirection:
        """The direction of one layer added at its input, while the prompt is read.

        Harmfulness is added at the request's tokens, refusal at all: at the request's tokens alone
        it does next to nothing, which looks like a difference between the two and is none.

        Args:
            kind: which one.
            layer: block.
            coefficient: in units of the direction as it was measured.
            spare: for harmfulness, how many of the request's last tokens to leave alone.
        """
        if kind == "refusal":
            return AddDirection(self.refusal[layer], layer, coefficient, prompt_only=True)
        return AddDirection(
            self.harmfulness[layer], layer, coefficient, (INSTRUCTION,), spare, prompt_only=True
        )


def two_directions(model: Model, harmful: Sequence[str], harmless: Sequence[str]) -> TwoDirections:
    """Both directions at all layers (arXiv 2507.11878, section 3).

    What is refused is told by the first token's distribution. Where the model refuses all of the
    prompts, or none, its refusal direction is that between harmful and harmless ones.

    Raises:
        BadInput: no harmful or no harmless prompts.
    """
    if not (harmful and harmless):
        raise BadInput("harmfulness and refusal directions need harmful and harmless prompts")
    sites = [Site(layer, "resid_pre") for layer in range(model.n_layers)]
    texts, logits = [*harmful, *harmless], Site(-1, "logits")
    found = read(
        model,
        texts,
        [*sites, logits],
        locate=lambda prompt: (*at_last_instruction(prompt), *at_last(prompt)),
    )
    log_probs = found[logits][:, 1].log_softmax(1)
    states = torch.stack([found[site] for site in sites], dim=2).double()
    is_harmful = torch.arange(len(texts)) < len(harmful)
    openers = refusal_tokens(log_probs[is_harmful], log_probs[~is_harmful], most=8)
    refused = refusal_score(log_probs, openers) > 0
    split = refused if 0 < int(refused.sum()) < len(texts) else is_harmful
    counts = [
        int((mine & theirs).sum())
        for mine in (is_harmful, ~is_harmful)
        for theirs in (refused, ~refused)
    ]
    return TwoDirections(
        (states[is_harmful, 0].mean(0) - states[~is_harmful, 0].mean(0)).float(),
        (states[split, 1].mean(0) - states[~split, 1].mean(0)).float(),
        *counts,
    )


def harm_directions(
    model: Model, train: Sequence[Behavior], layers: Sequence[int]
) -> dict[str, Tensor]:
    """`direction.<layer>` (D,), the unit harmfulness direction at each block's output."""
    sites = [Site(layer, "resid_post") for layer in layers]
    means = []
    for flag in (True, False):
        texts = [row.text for row in train if row.harmful == flag]
        states = read(model, texts, sites, locate=at_last_instruction)
        means.append(torch.stack([states[site][:, 0].double().mean(0) for site in sites]))
    units = torch.nn.functional.normalize(means[0] - means[1], dim=1).float()
    return {f"direction.{layer}": unit for layer, unit in zip(layers, units, strict=True)}


def refusal_bases(
    model: Model, train: Sequence[Behavior], layers: Sequence[int], rank: int
) -> dict[str, Tensor]:
    """For each layer the subspace that harmful prompts leave harmless ones by, at the last token.

    The first right singular vectors of harmful activations less the mean of harmless ones, not
    centred, so that the difference in means lies almost within them.

    Returns:
        `basis.<layer>` (R, D) with orthonormal rows, `middle.<layer>` (D,) the mean of harmless
        prompts, and the mean squared norm of the part in the subspace: `unit.<layer>` () of harmful
        prompts, `rest.<layer>` () of harmless ones in that unit.

    Raises:
        BadInput: a rank below 1, or above the number of harmful prompts or the model's width.
    """
    groups = [[row.text for row in train if row.harmful == kind] for kind in (True, False)]
    most = min(len(groups[0]), model.width)
    if not 1 <= rank <= most:
        raise BadInput(f"a refusal subspace of rank {rank}; valid: 1 to {most}")
    sites = [Site(layer, "resid_post") for layer in layers]
    harmful, harmless = (last_token(model, texts, sites) for texts in groups)
    found: dict[str, Tensor] = {}
    for site in sites:
        middle = harmless[site].double().mean(0)
        away, near = (group[site].double() - middle for group in (harmful, harmless))
        basis = torch.linalg.svd(away, full_matrices=False).Vh[:rank]
        unit, rest = ((rows @ basis.T).square().sum(1).mean() for rows in (away, near))
        fitted = {"basis": basis, "middle": middle, "unit": unit, "rest": rest / unit}
        found |= {f"{name}.{site.layer}": value.float() for name, value in fitted.items()}
    return found
