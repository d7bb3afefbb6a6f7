"""Which attention heads carry refusal to the answer, and which work against it.

After arXiv 2510.06036, section 4: heads of reasoning models that take refusal away just before the
answer. Scores are positive for heads that carry refusal, negative for those that suppress it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attacks.core.analysis.attribution import head_projections
from attacks.core.analysis.transcripts import Transcript
from attacks.core.errors import BadInput
from attacks.core.interventions import ScaleHeads
from attacks.core.reading.states import last_of
from attacks.core.sites import Site

if TYPE_CHECKING:
    from attacks.core.model import Model

Heads = tuple[tuple[int, int], ...]
#: What single heads are scaled by when they are traced (arXiv 2510.06036).
_TRACED = 1e-3


def sides(transcripts: Sequence[Transcript], *, least: int) -> tuple[list[Transcript], ...]:
    """Refused and answered ones, or, where there are fewer than `least` of a kind, harmful and not.

    Raises:
        BadInput: too few harmful or harmless ones as well.
    """
    refused = [t for t in transcripts if t.refused]
    answered = [t for t in transcripts if not t.refused]
    if min(len(refused), len(answered)) >= least:
        return refused, answered
    harmful = [t for t in transcripts if t.harmful]
    harmless = [t for t in transcripts if not t.harmful]
    if min(len(harmful), len(harmless)) < least:
        raise BadInput(
            f"heads need {least} harmful and {least} harmless training behaviours with an answer, "
            f"got {len(harmful)} and {len(harmless)}"
        )
    return harmful, harmless


def refusal_axis(
    model: Model, refused: Sequence[Transcript], answered: Sequence[Transcript], layer: int
) -> Tensor:
    """(D,) float32: mean over refused minus mean over answered ones of a layer's last token."""
    site = Site(layer, "resid_post")
    means = [
        last_of(model, [t.ids for t in rows], [site])[site].double().mean(0)
        for rows in (refused, answered)
    ]
    return (means[0] - means[1]).float()


def written_for_refusal(model: Model, transcripts: Sequence[Transcript], axis: Tensor) -> Tensor:
    """(L, H): what each head writes along `axis` (D,) before the answer (`head_projections`)."""
    return head_projections(model, [transcript.ids for transcript in transcripts], axis)


def traced_for_refusal(
    model: Model, transcripts: Sequence[Transcript], axis: Tensor, layer: int
) -> Tensor:
    """(L, H): how much of the projection on `axis` goes with each head.

    The alternative of the same paper: one head is scaled by 0.001 at every position, and what is
    read at the last token of `layer` is compared. Counts what a head does through others too, and
    costs a forward pass of all transcripts for each head; heads above `layer` have 0.
    """
    site = Site(layer, "resid_post")
    ids, unit = [transcript.ids for transcript in transcripts], axis / axis.norm()

    def read(*interventions: ScaleHeads) -> float:
        states = last_of(model, ids, [site], interventions=interventions)[site]
        return float((states @ unit).mean())

    whole = read()
    scores = torch.zeros(model.n_layers, model.structure.heads)
    for at in range(layer + 1):
        for head in range(model.structure.heads):
            scores[at, head] = whole - read(ScaleHeads(((at, head),), _TRACED))
    return scores


def strongest(scores: Tensor, count: int, *, against: bool = False) -> Heads:
    """The `count` heads (layer, head) of (L, H) scores that carry most, or suppress most."""
    ranked = scores.flatten().argsort(descending=not against, stable=True)[:count].tolist()
    return tuple(divmod(at, scores.shape[1]) for at in ranked)
