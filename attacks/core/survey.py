"""Where harm and refusal can be read in a model, layer by layer, and which layers to aim at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor
from torch.nn.functional import cosine_similarity

from attacks.core.artefact import Artefact
from attacks.core.attribution import head_patching
from attacks.core.behavior import Behavior
from attacks.core.directions import find_refusal_direction
from attacks.core.errors import BadInput
from attacks.core.probes import fit_probe
from attacks.core.refusal import refusal_tokens
from attacks.core.sites import Site
from attacks.core.states import last_token, next_token_log_probs

if TYPE_CHECKING:
    from attacks.core.model import Model

#: Held-out accuracy under which a probe is not aimed at.
LEAST_ACCURACY = 0.9
#: Share of the best causal effect that a layer chosen by itself must reach.
_LEAST_EFFECT = 0.9
#: Heads chosen by themselves at most (the paper's files name 1 to 8), and the share of the best
#: head's effect that each must reach.
_HEADS, _LEAST_HEAD = 4, 0.25


@dataclass(frozen=True)
class LayerReport:
    """One layer's output (`resid_post`) at the last prompt token."""

    layer: int
    accuracy: float
    """Of the linear probe on held-out training prompts."""
    separation: float
    """Distance of the class means along the direction, in pooled standard deviations."""
    cosines: tuple[float, float]
    """Mean cosine with the direction, of harmful and of harmless prompts."""
    effect: float | None
    """How far ablating the direction everywhere takes harmful prompts to the refusal score of
    harmless ones, 0 not at all, 1 all the way; None for the last layer, after which no block
    writes."""
    cost: float
    """Share of the blocks that a forward pass to this layer runs."""


@dataclass(frozen=True, eq=False)
class Survey:
    """What was fitted on harmful and harmless training prompts.

    `tensors` holds for each layer `weight.<l>` (D,) and `bias.<l>` () of its probe, P(harmless) =
    sigmoid(w . x + b), and `direction.<l>` (D,), the unit difference in means, harmful minus
    harmless; and once `ablation` (D,), the refusal direction whose ablation bypasses refusal best.
    """

    tensors: Mapping[str, Tensor]
    layers: tuple[LayerReport, ...]
    ablation_layer: int
    """Block at whose input `ablation` was read."""

    @property
    def data(self) -> dict[str, Any]:
        """The reports as JSON values, for an artefact."""
        reports = [asdict(report) for report in self.layers]
        return {"survey": reports, "ablation_layer": self.ablation_layer}


@runtime_checkable
class Surveyor(Protocol):
    """An attack that is fitted from a survey, which all such attacks on a model may share."""

    def fitted(self, model: Model, found: Survey, train: Sequence[Behavior]) -> Artefact:
        """The attack's artefact."""


def survey(model: Model, train: Sequence[Behavior], *, rng: Generator) -> Survey:
    """Fit a probe and a direction at every layer, and the direction to ablate.

    Raises:
        BadInput: fewer than four harmful or harmless behaviours.
    """
    harmful, harmless = ([b.text for b in train if b.harmful == flag] for flag in (True, False))
    found = find_refusal_direction(model, harmful, harmless, rng=rng, last_only=True)
    effects = {
        # The input of one block is the output of the one before.
        score.layer - 1: (found.refused - score.bypass) / max(found.refused - found.answered, 1e-6)
        for score in found.scores
    }
    sites = [Site(layer, "resid_post") for layer in range(model.n_layers)]
    states = [last_token(model, texts, sites) for texts in (harmful, harmless)]
    tensors = {"ablation": found.direction}
    reports = []
    for layer, site in enumerate(sites):
        bad, good = states[0][site], states[1][site]
        probe = fit_probe(bad, good, rng=rng)
        difference = (bad.double().mean(0) - good.double().mean(0)).float()
        direction = difference / difference.norm()
        tensors |= {
            f"weight.{layer}": probe.weight,
            f"bias.{layer}": probe.bias,
            f"direction.{layer}": direction,
        }
        spreads = torch.stack([(rows @ direction).var() for rows in (bad, good)])
        spread = spreads.mean().sqrt().clamp_min(1e-6)
        harm, rest = (cosine_similarity(rows, direction).mean() for rows in (bad, good))
        reports.append(
            LayerReport(
                layer,
                probe.accuracy,
                float(difference.norm() / spread),
                (float(harm), float(rest)),
                effects.get(layer),
                (layer + 1) / model.n_layers,
            )
        )
    return Survey(tensors, tuple(reports), found.layer)


def choose_layers(found: Survey, wanted: Sequence[int], *, who: str) -> tuple[int, ...]:
    """The layers asked for, or, where none are, the one to aim at.

    That is the shallowest whose probe is accurate and whose direction is causal: at least
    `LEAST_ACCURACY` on held-out prompts and 0.9 of the best layer's effect. A deeper one tells no
    more and costs more, since every candidate's forward pass ends at the deepest layer read.

    Args:
        found: of the model under attack.
        wanted: layers, or none.
        who: the attack, for messages.

    Raises:
        BadInput: a layer that the model does not have or whose probe is not accurate.
    """
    accurate = [report for report in found.layers if report.accuracy >= LEAST_ACCURACY]
    listed = ", ".join(f"{report.layer}: {report.accuracy:.2f}" for report in found.layers)
    for layer in wanted:
        if not 0 <= layer < len(found.layers):
            raise BadInput(f"{who}: layer {layer} is not in 0..{len(found.layers) - 1}")
        if found.layers[layer] not in accurate:
            raise BadInput(
                f"{who}: the probe of layer {layer} is right on less than {LEAST_ACCURACY} of "
                f"held-out prompts (by layer: {listed}); choose other layers"
            )
    if wanted:
        return tuple(wanted)
    if not accurate:
        return (max(found.layers, key=lambda report: report.accuracy).layer,)
    best = max((report.effect or 0.0) for report in accurate)
    causal = [report for report in accurate if (report.effect or 0.0) >= _LEAST_EFFECT * best]
    return (min(report.layer for report in (causal or accurate)),)


def choose_heads(
    model: Model, train: Sequence[Behavior], wanted: Sequence[tuple[int, int]]
) -> tuple[tuple[tuple[int, int], ...], Tensor]:
    """The heads asked for, or up to four with the largest effects, and the effects (L, H) of all.

    The effect of a head is how much of the refusal comes with its output when that is patched from
    a harmful prompt into its harmless twin (arXiv 2503.06269; `head_patching`). A model that does
    not refuse has no such heads, and all effects are 0.

    Raises:
        BadInput: a head that the model does not have, or no pairs of a harmful training behaviour
            and a harmless one.
    """
    by_id = {behavior.id: behavior for behavior in train}
    harmful = [b for b in train if b.harmful]
    harmless = [b for b in train if not b.harmful]
    pairs = [(b, by_id[b.twin]) for b in harmful if b.twin in by_id]
    pairs = pairs or list(zip(harmful, harmless, strict=False))
    if not pairs:
        raise BadInput("choosing heads needs harmful and harmless training behaviours")
    openers = refusal_tokens(
        *(next_token_log_probs(model, [b.text for b in rows]) for rows in (harmful, harmless)),
        most=8,
    )
    donors, takers = ([row.text for row in side] for side in zip(*pairs, strict=True))
    effects = (
        head_patching(model, donors, takers, openers)
        if len(openers)
        else torch.zeros(model.n_layers, model.structure.heads)
    )
    rows, columns = effects.shape
    for layer, head in wanted:
        if not (0 <= layer < rows and 0 <= head < columns):
            raise BadInput(f"head ({layer}, {head}) is not in (0, 0)..({rows - 1}, {columns - 1})")
    flat = effects.flatten()
    ranked = flat.argsort(descending=True, stable=True)[:_HEADS].tolist()
    strong = [at for at in ranked if flat[at] >= _LEAST_HEAD * flat.max()]
    return tuple(wanted) or tuple(divmod(at, columns) for at in strong), effects
