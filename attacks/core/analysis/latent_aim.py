"""The sparse latents that `ssr-latents` aims at, put on one scale, and whether they are good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Generator, Tensor

from attacks.core.analysis.autoencoder import SparseAutoencoder
from attacks.core.analysis.latents import (
    Attribution,
    Autoencoding,
    attribute,
    autoencoder_of,
    last_states,
    request_states,
    scores_at,
)
from attacks.core.analysis.survey import LEAST_ACCURACY
from attacks.core.artefact import Artefact
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.reading.states import last_token
from attacks.core.refusals.openers import refusal_score
from attacks.core.refusals.verdicts import hold_out
from attacks.core.sites import Site

if TYPE_CHECKING:
    from attacks.core.model import Model

#: A dictionary that leaves more than this share of the variance is no account of the activations.
MOST_UNEXPLAINED = 0.5
#: How far latents that refuse must take harmful prompts to the refusal score of harmless ones when
#: they are turned off, 1 all the way.
LEAST_EFFECT = 0.25


@dataclass(frozen=True)
class LatentCheck:
    """Summary of refusal-mediating latents on held-out prompts."""

    unexplained: float
    """Share of the variance of activations that the autoencoder does not reconstruct."""
    accuracy: float
    """Mean share of harmful prompts that the latents put above the middle between the kinds, and of
    harmless ones below it."""
    effect: float | None
    """How far turning the latents off, to where harmless prompts have them, takes harmful prompts
    to the refusal score of harmless ones; None where no token opens refusals."""

    @property
    def faults(self) -> tuple[str, ...]:
        """Why the latents are not good, in words; none where they are."""
        found = []
        if self.unexplained > MOST_UNEXPLAINED:
            found.append(
                f"the autoencoder leaves {self.unexplained:.2f} of the variance of held-out "
                "activations unexplained"
            )
        if self.accuracy < LEAST_ACCURACY:
            found.append(
                f"its latents tell only {self.accuracy:.2f} of held-out prompts as harmful or "
                "harmless"
            )
        if self.effect is None:
            found.append(
                "no token opens refusals, so these are only the latents that differ most between "
                "harmful and harmless prompts"
            )
        elif self.effect < LEAST_EFFECT:
            found.append(
                f"turning its latents off takes held-out harmful prompts {self.effect:.2f} of the "
                "way to the refusal score of harmless ones"
            )
        return tuple(found)

    @property
    def data(self) -> dict[str, Any]:
        """As JSON values, with `verdict` "good" or "failed" and the `faults`."""
        faults = list(self.faults)
        return {"verdict": "failed" if faults else "good", "faults": faults, **asdict(self)}


def check_latents(
    model: Model,
    autoencoder: SparseAutoencoder,
    found: Attribution,
    chosen: Sequence[int],
    held_out: Sequence[Behavior],
) -> LatentCheck:
    """Try the chosen latents on behaviours of both kinds that they were not fitted on.

    An autoencoder that was read from a file may know them all the same.
    """
    groups = [[model.plain(row.text) for row in held_out if row.harmful == flag] for flag in (1, 0)]
    site, reads, log_probs = last_states(model, groups, autoencoder.layer)
    rows, offsets, shares = on_a_scale(autoencoder, found, chosen)
    harmful, harmless = ((states @ rows.T + offsets) @ shares > 0.5 for states in reads)
    effect = None
    if len(found.openers):
        before, rest = (float(refusal_score(row, found.openers).mean()) for row in log_probs)
        beyond = found.latents[1][chosen] - autoencoder.encode(reads[0])[:, chosen]
        states = reads[0] + autoencoder.scale * beyond @ autoencoder.decoder[chosen]
        after = float(scores_at(model, groups[0], site, found.openers, states)[0].mean())
        effect = (before - after) / max(before - rest, 1e-6)
    return LatentCheck(
        autoencoder.unexplained(request_states(model, [*groups[0], *groups[1]], autoencoder.layer)),
        float(harmful.double().mean() + (~harmless).double().mean()) / 2,
        effect,
    )


def on_a_scale(
    autoencoder: SparseAutoencoder, found: Attribution, chosen: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Pre-activations of latents, put so that harmful prompts are at 1 and harmless ones at 0.

    Returns:
        F (R, D) and o (R,), with which z = F e + o are the pre-activations of an activation e on
        that scale, on which means of training prompts lie; and each one's share (R,) of the
        attribution, adding up to 1.
    """
    harmful, harmless = (side[chosen] for side in found.pre)
    unit = harmful - harmless
    rows = autoencoder.encoder[chosen] / autoencoder.scale / unit.unsqueeze(1)
    offsets = (autoencoder.bias[chosen] - harmless) / unit - rows @ autoencoder.middle
    return rows, offsets, found.scores[chosen] / found.scores[chosen].sum()


def aim_at_latents(
    model: Model, train: Sequence[Behavior], layer: int, how: Autoencoding
) -> Artefact:
    """The latents of a layer that refuse, fitted on three quarters of `train` and then checked.

    Returns:
        `latents.<layer>` (R, D), `offsets.<layer>` (R,) and `shares.<layer>` (R,) of `on_a_scale`;
        `rest.<layer>` (), what `LatentLoss` is for harmless training prompts; which latents these
        are; and the check on the last quarter.

    Raises:
        BadInput: as `autoencoder_of`, fewer than four behaviours of a kind, or no latent that
            refuses.
    """
    if how.top < 1:
        raise BadInput(f"ssr-latents: latents.top={how.top}; valid: 1 or more")
    rng = Generator().manual_seed(how.seed)
    fit, held_out = hold_out(train, rng, who="ssr-latents")
    autoencoder = autoencoder_of(model, fit, layer, how)
    found = attribute(model, autoencoder, fit)
    chosen = found.top(how.top)
    if not chosen:
        raise BadInput(
            f"ssr-latents: no sparse latent of layer {layer} raises refusal; choose other `layers` "
            "or another autoencoder (`latents`)"
        )
    rows, offsets, shares = on_a_scale(autoencoder, found, chosen)
    site = Site(layer, "resid_post")
    calm = last_token(model, [row.text for row in fit if not row.harmful], [site])[site]
    rest = (shares * (calm @ rows.T + offsets).clamp_min(0).square()).sum(1).mean()
    tensors = {"latents": rows, "offsets": offsets, "shares": shares, "rest": rest}
    attributed = [float(found.scores[at]) for at in chosen]
    return Artefact(
        {f"{name}.{layer}": value for name, value in tensors.items()},
        {"latents": chosen, "attribution": attributed, "whole": found.whole},
        check=check_latents(model, autoencoder, found, chosen, held_out).data,
    )
