"""Refusal while a model thinks: a probe at every position, and how far it falls before the answer.

After arXiv 2510.06036, whose probe is fitted at the last token only and applied everywhere, so that
what it says of thinking is out of its domain. Hence the controls: probes at several depths, the
same curve of benign thinking, and what the unembedding alone says (`lens_curves`), since a probe on
the last states may read nothing but the next token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Generator, Tensor

from attacks.core.analysis.attribution import final_norm_output
from attacks.core.analysis.transcripts import Transcript
from attacks.core.errors import BadInput
from attacks.core.reading.probes import Probe, fit_probe
from attacks.core.reading.states import last_of
from attacks.core.sites import Site
from attacks.core.weights import Change

if TYPE_CHECKING:
    from attacks.core.model import Model

#: Transcripts of a kind without which no probe is fitted.
LEAST = 4
_ROBUST = 0.25
_BEFORE = 5


@dataclass(frozen=True)
class Cliff:
    """Summary of a curve of refusal scores."""

    plateau: float
    """Mean over what was thought."""
    robust: float
    """Median of the last quarter of that."""
    final: float
    """Of the last token."""
    drop: float
    """Plateau minus final: the cliff."""
    relative: float
    """The drop as a share of the plateau."""
    position: int
    """Where the curve falls most from one token to the next: -1 is the last token."""


def measure_cliff(curve: Tensor, closing: int, *, eps: float = 1e-6) -> Cliff:
    """The metrics of a curve (P,) whose last `closing` values are those of closing tokens.

    The steepest fall is looked for among the steps onto the last `closing` + 5 tokens.

    Raises:
        BadInput: nothing was thought.
    """
    values = curve.double()
    thought = values[: len(values) - closing]
    if not len(thought) or not closing:
        raise BadInput("a cliff needs tokens that were thought and tokens that close the thinking")
    plateau, final = float(thought.mean()), float(values[-1])
    late = thought[-max(1, round(_ROBUST * len(thought))) :]
    steps = values.diff()[-(closing + _BEFORE) :]
    return Cliff(
        plateau,
        float(late.quantile(0.5)),
        final,
        plateau - final,
        (plateau - final) / max(plateau, eps),
        int(steps.argmin()) - len(steps),
    )


def rank(cliffs: Sequence[Cliff], by: Literal["cliff", "final"]) -> list[int]:
    """Indices, most telling first.

    The paper's text ranks by the size of the cliff, its code by the final score alone, lowest
    first; the two need not agree.
    """
    keys = [-cliff.drop if by == "cliff" else cliff.final for cliff in cliffs]
    return sorted(range(len(keys)), key=keys.__getitem__)


def aligned_mean(curves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (P,) and count (P,) over curves of any length, index -1 being the last of each.

    Only curves that reach back so far count: filling shorter ones up with zeros would pull the
    beginning down.
    """
    longest = max(len(curve) for curve in curves)
    total, count = torch.zeros(longest, dtype=torch.float64), torch.zeros(longest)
    for curve in curves:
        total[longest - len(curve) :] += curve.double()
        count[longest - len(curve) :] += 1
    return (total / count).float(), count


def resample(curve: Tensor, points: int = 100) -> Tensor:
    """A curve (P,) of two or more values at `points` places from first to last, by cubic spline.

    Kept within the range of its values, which a spline may leave.
    """
    places = np.linspace(0, len(curve) - 1, points)
    found = CubicSpline(np.arange(len(curve)), curve.double().numpy())(places)
    return torch.from_numpy(found).float().clamp(float(curve.min()), float(curve.max()))


def refusal_probes(
    model: Model,
    refused: Sequence[Transcript],
    answered: Sequence[Transcript],
    layers: Sequence[int],
    *,
    rng: Generator,
) -> dict[int, Probe]:
    """A probe for each layer's output at the last token: P(refusal) = sigmoid(w . x + b).

    Its `accuracy` is that on transcripts held out of the fit.

    Raises:
        BadInput: fewer than `LEAST` of a kind.
    """
    if min(len(refused), len(answered)) < LEAST:
        raise BadInput(
            f"a refusal probe needs {LEAST} refused and {LEAST} answered transcripts, got "
            f"{len(refused)} and {len(answered)}"
        )
    sites = [Site(layer, "resid_post") for layer in layers]
    no, yes = (last_of(model, [t.ids for t in rows], sites) for rows in (refused, answered))
    return {site.layer: fit_probe(yes[site], no[site], rng=rng) for site in sites}


def accuracy(
    model: Model, probes: Mapping[int, Probe], transcripts: Sequence[Transcript]
) -> dict[int, float]:
    """By layer, how many of the transcripts a probe tells refused from answered."""
    sites = [Site(layer, "resid_post") for layer in probes]
    states = last_of(model, [transcript.ids for transcript in transcripts], sites)
    refused = torch.tensor([transcript.refused for transcript in transcripts])
    found = {}
    for site in sites:
        probe = probes[site.layer]
        says = states[site] @ probe.weight + probe.bias > 0
        found[site.layer] = float((says == refused).double().mean())
    return found


@torch.no_grad()
def refusal_curves(
    model: Model, transcripts: Sequence[Transcript], probes: Mapping[int, Probe]
) -> list[dict[int, Tensor]]:
    """For each transcript and probed layer (P,) scores, from the first token that was thought."""
    return [
        {
            layer: (states @ probes[layer].weight + probes[layer].bias).sigmoid()
            for layer, states in _states(model, transcript, list(probes)).items()
        }
        for transcript in transcripts
    ]


@torch.no_grad()
def thought_and_end(
    model: Model,
    transcript: Transcript,
    layers: Sequence[int],
    *,
    interventions: Sequence[Change] = (),
) -> dict[int, Tensor]:
    """By layer (2, D) float32: the mean over what was thought, and the last token.

    `interventions` are at work as while a prompt is read, in what was thought too.

    Raises:
        BadInput: nothing was thought.
    """
    if not transcript.thinks:
        raise BadInput("a cliff needs tokens that were thought")
    found = _states(model, transcript, layers, interventions)
    end = len(transcript.ids) - transcript.start - transcript.closing
    return {
        layer: torch.stack([states[:end].mean(0), states[-1]]) for layer, states in found.items()
    }


def intention_probes(
    model: Model,
    refused: Sequence[Transcript],
    answered: Sequence[Transcript],
    layers: Sequence[int],
    *,
    rng: Generator,
) -> dict[int, tuple[Probe, Probe]]:
    """For each layer's output a probe for the mean over the thinking and one for the last token.

    Unlike that of `refusal_probes`, which is fitted at the last token, the first of them reads
    what it was fitted on. It is fitted on answered transcripts of harmless requests only: harmful
    ones may have been thought about as if they would be refused, which is the cliff.

    Raises:
        BadInput: fewer than `LEAST` of a kind, of the answered ones harmless.
    """
    plain = [row for row in answered if not row.harmful]
    if min(len(refused), len(plain)) < LEAST:
        raise BadInput(
            f"probes for refusal need {LEAST} refused and {LEAST} harmless answered transcripts, "
            f"got {len(refused)} and {len(plain)}"
        )
    no, fine, yes = (
        [thought_and_end(model, row, layers) for row in rows] for rows in (refused, plain, answered)
    )
    found = {}
    for layer in layers:
        pairs = [
            fit_probe(
                torch.stack([states[layer][at] for states in no]),
                torch.stack([states[layer][at] for states in others]),
                rng=rng,
            )
            for at, others in enumerate((fine, yes))
        ]
        # A probe says how likely an answer is; here the other side is asked for.
        thinking, last = (replace(probe, weight=-probe.weight, bias=-probe.bias) for probe in pairs)
        found[layer] = thinking, last
    return found


@torch.no_grad()
def lens_curves(
    model: Model,
    transcripts: Sequence[Transcript],
    layers: Sequence[int],
    refuse_ids: Tensor,
    accept_ids: Tensor,
) -> list[dict[int, Tensor]]:
    """The control without a probe: P(opens a refusal) against opening an answer, by logit lens.

    Each layer's output goes through the final norm and the unembedding as if an answer began at
    every position; soft caps and an unembedding's bias are left out.

    Args:
        model: the model.
        transcripts: as for `refusal_curves`, with curves of the same shape.
        layers: whose outputs are read.
        refuse_ids: (K,) tokens that open refusals.
        accept_ids: (M,) tokens that open answers.

    Raises:
        BadInput: this family has no known final norm, or there are no such tokens.
    """
    if not len(refuse_ids) or not len(accept_ids):
        raise BadInput(
            "the logit lens needs tokens that open refusals and tokens that open answers"
        )
    table = model.hf.get_output_embeddings().weight.detach().float().cpu()
    refuse, accept = table[refuse_ids.cpu()], table[accept_ids.cpu()]
    curves = []
    for transcript in transcripts:
        curve = {}
        for layer, states in _states(model, transcript, layers).items():
            normed = final_norm_output(model, states)
            odds = [(normed @ rows.T).logsumexp(1) for rows in (refuse, accept)]
            curve[layer] = (odds[0] - odds[1]).sigmoid()
        curves.append(curve)
    return curves


def _states(
    model: Model,
    transcript: Transcript,
    layers: Sequence[int],
    interventions: Sequence[Change] = (),
) -> dict[int, Tensor]:
    """(P, D) float32 of each layer, from the first token that was thought to the last."""
    places = tuple(range(transcript.start, len(transcript.ids)))
    sites = [Site(layer, "resid_post", places) for layer in layers]
    trace = model.trace(
        transcript.ids.unsqueeze(0), sites, interventions=interventions, roles=transcript.roles
    )
    return {site.layer: trace[site][0].float().cpu() for site in sites}
