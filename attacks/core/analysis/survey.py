"""Where harm and refusal can be read in a model, layer by layer, and which layers to aim at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor
from torch.nn.functional import cosine_similarity

from attacks.core.analysis.attribution import head_patching
from attacks.core.artefact import Artefact
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.reading.probes import fit_probe
from attacks.core.reading.states import last_token, next_token_log_probs
from attacks.core.refusals.checked_direction import find_checked_direction
from attacks.core.refusals.choice import DirectionScore
from attacks.core.refusals.directions import RefusalDirection
from attacks.core.refusals.openers import refusal_score, refusal_tokens
from attacks.core.refusals.own_answers import fit_own_answers
from attacks.core.sites import Site

if TYPE_CHECKING:
    from attacks.core.model import Model

#: Held-out accuracy under which a probe is not aimed at.
LEAST_ACCURACY = 0.9
#: Share of the best causal effect that a layer chosen by itself must reach.
_LEAST_EFFECT = 0.9
#: Heads chosen by themselves at most (the paper's files name 1 to 8), and the share of the best
#: head's effect that each must reach.
_HEADS, _LEAST_HEAD = 4, 0.25
#: KL on harmless prompts, in nats, from which a direction's ablation breaks the model.
BROKEN = 1.0
#: Prompts refused, and answered, from which these are the labels of probes.
_LEAST_LABELLED = 4
#: How many times the best later layer's log loss that of the first may be to count as good.
_AS_GOOD = 1.1


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
    harmless ones, 0 not at all, 1 all the way or beyond, and 0 where that breaks the model (`kl`
    above `BROKEN`); None for the last layer, after which no block writes."""
    cost: float
    """Share of the blocks that a forward pass to this layer runs."""
    log_loss: float | None = None
    """Of the probe on held-out training prompts, nats (`Probe.log_loss`)."""
    kl: float | None = None
    """What ablating the direction does to harmless prompts (`DirectionScore.kl`), nats."""


@dataclass(frozen=True, eq=False)
class Survey:
    """What was fitted on harmful and harmless training prompts.

    `tensors` holds for each layer `weight.<l>` (D,) and `bias.<l>` () of its probe, P(harmless) =
    sigmoid(w . x + b), and `direction.<l>` (D,), the unit difference in means, harmful minus
    harmless; and once `ablation` (D,), the refusal direction chosen to be ablated. Where a check
    found that to fail, there is also `subspace` (k, D), fitted by gradient.
    """

    tensors: Mapping[str, Tensor]
    layers: tuple[LayerReport, ...]
    ablation_layer: int
    """Block at whose input `ablation` was read."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """What tells an own answer from a refusal and from gibberish; see `OwnAnswers`."""
    check: Mapping[str, Any] = field(default_factory=dict)
    """What a check says of `subspace`, or else of `ablation` (`Artefact.check`)."""

    @property
    def data(self) -> dict[str, Any]:
        """The reports as JSON values, for an artefact."""
        reports = [asdict(report) for report in self.layers]
        own = {"own": dict(self.own)} if self.own else {}
        return {"survey": reports, "ablation_layer": self.ablation_layer, **own}

    @property
    def artefact(self) -> Artefact:
        """The whole survey, to be kept."""
        return Artefact(self.tensors, self.data, check=self.check)

    @classmethod
    def of(cls, kept: Artefact) -> Survey:
        """The survey that was kept as `artefact`."""
        reports = tuple(LayerReport(**report) for report in kept.data["survey"])
        layer = int(kept.data["ablation_layer"])
        return cls(kept.tensors, reports, layer, kept.data.get("own", {}), kept.check)


@runtime_checkable
class Surveyor(Protocol):
    """An attack that is fitted from a survey, which all such attacks on a model may share."""

    def fitted(self, model: Model, found: Survey, train: Sequence[Behavior]) -> Artefact:
        """The attack's artefact."""


def survey(model: Model, train: Sequence[Behavior], *, rng: Generator) -> Survey:
    """Fit a probe and a direction at every layer, and what is ablated for the model's own answers.

    That is the difference-in-means direction if a check on the prompts held out of its fit finds it
    good (`Check.good`); where the model refuses and the direction does not undo that, a subspace is
    fitted by gradient beside it.

    Raises:
        BadInput: fewer than four harmful or harmless behaviours.
    """
    harmful, harmless = ([b.text for b in train if b.harmful == flag] for flag in (True, False))
    best = find_checked_direction(model, train, rng=rng, last_only=True)
    found = best.found
    # The input of one block is the output of the one before.
    scores = {score.layer - 1: score for score in found.scores}
    sites = [Site(layer, "resid_post") for layer in range(model.n_layers)]
    states = _labelled(model, harmful, harmless, sites)
    tensors: dict[str, Tensor] = {}
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
        score = scores.get(layer)
        reports.append(
            LayerReport(
                layer,
                probe.accuracy,
                float(difference.norm() / spread),
                (float(harm), float(rest)),
                None if score is None else _effect(score, found),
                (layer + 1) / model.n_layers,
                probe.log_loss,
                None if score is None else score.kl,
            )
        )
    own = fit_own_answers(model, train, best, rng=rng)
    tensors |= own.tensors
    return Survey(tensors, tuple(reports), found.layer, own.data["own"], own.check)


def _effect(score: DirectionScore, found: RefusalDirection) -> float:
    """`LayerReport.effect`: beyond 1 lies nothing better, only more damage."""
    if score.kl > BROKEN:
        return 0.0
    whole = max(found.refused - found.answered, 1e-6)
    return min((found.refused - score.bypass) / whole, 1.0)


def _labelled(
    model: Model, harmful: Sequence[str], harmless: Sequence[str], sites: Sequence[Site]
) -> tuple[dict[Site, Tensor], dict[Site, Tensor]]:
    """{site: (N, D)} at the last token of the prompts that are refused, and of those answered.

    By the first token of the answer, so that probes read what the model does and not how two sets
    differ in style. Where it does not do both at least `_LEAST_LABELLED` times, prompts are taken
    as they are labelled, harmful and harmless.
    """
    logits = Site(-1, "logits")
    read = [last_token(model, texts, [*sites, logits], share=True) for texts in (harmful, harmless)]
    log_probs = [rows[logits].log_softmax(1) for rows in read]
    openers = refusal_tokens(*log_probs, most=8)
    refused = [refusal_score(rows, openers) > 0 for rows in log_probs]
    count = sum(int(flags.sum()) for flags in refused)
    if min(count, len(harmful) + len(harmless) - count) < _LEAST_LABELLED:
        bad, good = read
    else:
        bad, good = (
            {
                site: torch.cat(
                    [rows[site][flags == flag] for rows, flags in zip(read, refused, strict=True)]
                )
                for site in sites
            }
            for flag in (True, False)
        )
    return bad, good


def reads_sets(found: Survey) -> bool:
    """Whether the probe after the first block is as good as that of any layer.

    Then the probes may read how the two training sets differ, and not what the model makes of them.
    """
    losses = [report.log_loss for report in found.layers if report.log_loss is not None]
    return len(losses) > 1 and losses[0] <= _AS_GOOD * min(losses[1:])


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
    model: Model,
    train: Sequence[Behavior],
    wanted: Sequence[tuple[int, int]],
    *,
    openers: Tensor | None = None,
) -> tuple[tuple[tuple[int, int], ...], Tensor]:
    """The heads asked for, or up to four with the largest effects, and the effects (L, H) of all.

    The effect of a head is how much of the refusal comes with its output when that is patched from
    a harmful prompt into its harmless twin (arXiv 2503.06269; `head_patching`). A model that does
    not refuse has no such heads, and all effects are 0.

    Args:
        model: the model.
        train: with twins, where there are any.
        wanted: heads, or none.
        openers: (K,) the first tokens of refusals, if they are known from these prompts.

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
    if openers is None:
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
