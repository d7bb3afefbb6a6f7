"""Which sparse latents refuse: attribution of the refusal score to an autoencoder's latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from attacks.core.analysis.autoencoder import Kind, SparseAutoencoder, fit_autoencoder
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.interventions import Context, Intervention
from attacks.core.prompt import INSTRUCTION, Prompt
from attacks.core.reading.states import equal_lengths, last_token, read
from attacks.core.refusals.openers import refusal_score, refusal_tokens
from attacks.core.sites import Site

if TYPE_CHECKING:
    from attacks.core.model import Model

#: Prompts of a pass, and points on the line that gradients are taken at.
_BATCH, _POINTS = 32, 4


@dataclass(frozen=True)
class Autoencoding:
    """How an autoencoder is fitted, or where a fitted one is."""

    kind: Kind = "abs-topk"
    """Which pre-activations are kept: the k of largest magnitude with their signs (arXiv
    2510.00404), or "topk": the k largest, where positive (arXiv 2406.04093)."""
    k: int = 8
    latents: int = 256
    """How many latents there are."""
    steps: int = 1000
    """Of Adam, of 256 activations each."""
    seed: int = 0
    """Draws the start and the batches."""
    path: str = ""
    """File of an autoencoder that was fitted before (`SparseAutoencoder.save`), for one layer; of
    the other options only `top` counts then. It is read once, when the attack is prepared."""
    top: int = 4
    """How many of the latents that refuse are used."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """What each of M latents contributes to the refusal of harmful prompts.

    Prompts are read at their last token. With f a harmful prompt's latent, f' the mean one of
    harmless prompts, d the latent's direction and g the gradient of the refusal score, it
    contributes (f - f') <d, g>, mean over harmful prompts: gradient times activation, with harmless
    prompts as the baseline. The gradient at the prompt itself would miss what saturates, so g is
    the mean along the straight line from the mean harmless activation (integrated gradients, arXiv
    1703.01365).
    """

    scores: Tensor
    """(M,) in nats of log odds."""
    latents: tuple[Tensor, Tensor]
    """Mean latents (M,) of harmful and of harmless prompts."""
    pre: tuple[Tensor, Tensor]
    """Mean pre-activations (M,) of harmful and of harmless prompts."""
    frequency: Tensor
    """(M,) share of all these prompts whose latent is not 0."""
    whole: float
    """Mean refusal score of harmful prompts less that of harmless ones; `scores` add up to less by
    what latents leave unexplained, and what one mean activation is not all harmless prompts."""
    refuses: bool
    """False: no token opens refusals, and `scores` are distances of the mean pre-activations
    instead, in pooled standard deviations."""

    def top(self, count: int) -> list[int]:
        """At most so many latents that raise refusal most, the first first.

        Left out are latents whose pre-activation moves the other way than what is kept of it.
        """
        agree = (self.latents[0] - self.latents[1]) * (self.pre[0] - self.pre[1]) > 0
        ranked = self.scores.argsort(descending=True, stable=True).tolist()
        return [at for at in ranked if agree[at] and self.scores[at] > 0][:count]


def request_states(model: Model, prompts: Sequence[Prompt], layer: int) -> Tensor:
    """(N, D) float32 `resid_post` of a block, at every token of the prompts from the request on.

    What comes before is the same in all prompts, and its first token is often massive.
    """
    site = Site(layer, "resid_post")
    found = []
    for members in equal_lengths(prompts, _BATCH):
        group = [prompts[at] for at in members]
        starts = [int((prompt.roles == INSTRUCTION).nonzero()[0]) for prompt in group]
        states = read(model, group, [site], locate=lambda prompt: range(len(prompt.ids)))[site]
        found += [row[start:] for row, start in zip(states, starts, strict=True)]
    return torch.cat(found)


def autoencoder_of(
    model: Model, train: Sequence[Behavior], layer: int, how: Autoencoding
) -> SparseAutoencoder:
    """The autoencoder of a layer, fitted on the training prompts or read from a file.

    Raises:
        BadInput: as `fit_autoencoder` and `SparseAutoencoder.load`, or a file for another layer or
            width.
    """
    if how.path:
        found = SparseAutoencoder.load(Path(how.path).expanduser())
        width = found.encoder.shape[1]
        if (found.layer, width) != (layer, model.width):
            raise BadInput(
                f"sparse autoencoder '{how.path}' is for layer {found.layer} and width {width}, "
                f"wanted are layer {layer} and width {model.width} of model '{model.name}'"
            )
        return found
    states = request_states(model, [model.plain(row.text) for row in train], layer)
    return fit_autoencoder(
        states,
        layer=layer,
        latents=how.latents,
        k=how.k,
        kind=how.kind,
        steps=how.steps,
        rng=Generator().manual_seed(how.seed),
    )


def attribute(
    model: Model, autoencoder: SparseAutoencoder, train: Sequence[Behavior]
) -> Attribution:
    """Attribute the refusal of the harmful training prompts to latents; see `Attribution`.

    Raises:
        BadInput: no harmful or no harmless behaviours.
    """
    groups = [[model.plain(row.text) for row in train if row.harmful == flag] for flag in (1, 0)]
    if not all(groups):
        raise BadInput("latents that refuse need harmful and harmless training behaviours")
    site, logits = Site(autoencoder.layer, "resid_post"), Site(-1, "logits")
    reads = [last_token(model, prompts, [site, logits]) for prompts in groups]
    log_probs = [rows[logits].log_softmax(1) for rows in reads]
    openers = refusal_tokens(*log_probs, most=8)
    pre = [autoencoder.pre(rows[site]) for rows in reads]
    codes = [autoencoder.encode(rows[site]) for rows in reads]
    harmful, harmless = (rows.mean(0) for rows in codes)
    means = (pre[0].mean(0), pre[1].mean(0))
    if len(openers):
        way = reads[1][site].mean(0) - reads[0][site]
        points = [(at + 0.5) / _POINTS * way for at in range(_POINTS)]
        slopes = [score_gradients(model, groups[0], site, openers, to) for to in points]
        directions = autoencoder.scale * autoencoder.decoder
        scores = ((codes[0] - harmless) * (torch.stack(slopes).mean(0) @ directions.T)).mean(0)
    else:
        spread = torch.stack([rows.var(0) for rows in pre]).mean(0).sqrt().clamp_min(1e-6)
        scores = (means[0] - means[1]).abs() / spread
    refused, answered = (float(refusal_score(rows, openers).mean()) for rows in log_probs)
    return Attribution(
        scores,
        (harmful, harmless),
        means,
        (torch.cat(codes) != 0).float().mean(0),
        refused - answered,
        bool(len(openers)),
    )


def score_gradients(
    model: Model, prompts: Sequence[Prompt], site: Site, token_ids: Tensor, moved: Tensor
) -> Tensor:
    """(N, D) float32 gradients of each prompt's refusal score, by the activation at its last token.

    Args:
        model: the model.
        prompts: N of them.
        site: a `resid_post`; its positions are not used.
        token_ids: (K,) refusal openers.
        moved: (N, D) what is added to the activation first.
    """
    found = torch.zeros(len(prompts), model.width)
    for members in equal_lengths(prompts, _BATCH):
        group = [prompts[at] for at in members]
        ids, roles = (torch.stack([getattr(p, name) for p in group]) for name in ("ids", "roles"))
        read = Site(-1, "logits", (ids.shape[1] - 1,))
        shift = moved[members].unsqueeze(1).to(model.device).requires_grad_()
        with torch.enable_grad():
            trace = model.trace(ids, [read], interventions=[ShiftLast(site, shift)], roles=roles)
            log_probs = trace[read][:, 0].double().log_softmax(1)
            score = refusal_score(log_probs, token_ids.to(log_probs.device)).sum()
            (gradient,) = torch.autograd.grad(score, shift)
        found[members] = gradient[:, 0].float().cpu()
    return found


@dataclass(frozen=True, eq=False)
class ShiftLast(Intervention):
    """Adds a vector to what each row of a batch has at its last position; gradients flow to it."""

    site: Site
    shift: Tensor
    """(B, 1, D)"""

    @property
    def sites(self) -> tuple[Site, ...]:
        return (self.site,)

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        moved = activation[:, -1:] + self.shift.to(activation)
        return torch.cat([activation[:, :-1], moved], dim=1)


@dataclass(frozen=True, eq=False)
class Aim:
    """The latents that `LatentLoss` reads at one layer, as tensors, and what they are."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)


def aim_at_latents(model: Model, train: Sequence[Behavior], layer: int, how: Autoencoding) -> Aim:
    """The latents of a layer that refuse, put so that harmful prompts are at 1, harmless ones at 0.

    Returns:
        `latents.<layer>` (R, D) and `offsets.<layer>` (R,), with which z = latents e + offsets is a
        pre-activation on that scale; `shares.<layer>` (R,) of the attribution, which add up to 1;
        and `rest.<layer>` (), what `LatentLoss` is for harmless training prompts.

    Raises:
        BadInput: as `autoencoder_of` and `attribute`, or no latent that refuses.
    """
    if how.top < 1:
        raise BadInput(f"ssr-latents: latents.top={how.top}; valid: 1 or more")
    autoencoder = autoencoder_of(model, train, layer, how)
    found = attribute(model, autoencoder, train)
    chosen = found.top(how.top)
    if not chosen:
        raise BadInput(f"no sparse latent of layer {layer} tells harmful from harmless prompts")
    harmful, harmless = (side[chosen] for side in found.pre)
    unit = harmful - harmless
    rows = autoencoder.encoder[chosen] / autoencoder.scale / unit.unsqueeze(1)
    offsets = (autoencoder.bias[chosen] - harmless) / unit - rows @ autoencoder.middle
    shares = found.scores[chosen] / found.scores[chosen].sum()
    site = Site(layer, "resid_post")
    calm = last_token(model, [row.text for row in train if not row.harmful], [site])[site]
    rest = (shares * (calm @ rows.T + offsets).clamp_min(0).square()).sum(1).mean()
    tensors = {"latents": rows, "offsets": offsets, "shares": shares, "rest": rest}
    return Aim(
        {f"{name}.{layer}": value for name, value in tensors.items()},
        {
            "latents": chosen,
            "attribution": [float(found.scores[at]) for at in chosen],
            "whole": found.whole,
            "refuses": found.refuses,
        },
    )
