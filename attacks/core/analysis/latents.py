"""Which sparse latents refuse: attribution of the refusal score to an autoencoder's latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from attacks.core.analysis.autoencoder import Kind, SparseAutoencoder, fit_autoencoder
from attacks.core.analysis.faithfulness import ReplaceLast
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
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
    """How many latents are active for one activation."""
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
    openers: Tensor
    """(K,) tokens that open refusals. Where there are none, `scores` are distances of the mean
    pre-activations instead, in pooled standard deviations."""

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
    site, reads, log_probs = last_states(model, groups, autoencoder.layer)
    openers = refusal_tokens(*log_probs, most=8)
    pre = [autoencoder.pre(states) for states in reads]
    codes = [autoencoder.encode(states) for states in reads]
    harmful, harmless = (rows.mean(0) for rows in codes)
    means = (pre[0].mean(0), pre[1].mean(0))
    if len(openers):
        way = reads[1].mean(0) - reads[0]
        points = [reads[0] + (at + 0.5) / _POINTS * way for at in range(_POINTS)]
        slopes = [scores_at(model, groups[0], site, openers, states)[1] for states in points]
        directions = autoencoder.scale * autoencoder.decoder
        scores = ((codes[0] - harmless) * (torch.stack(slopes).mean(0) @ directions.T)).mean(0)
    else:
        spread = torch.stack([rows.var(0) for rows in pre]).mean(0).sqrt().clamp_min(1e-6)
        scores = (means[0] - means[1]).abs() / spread
    refused, answered = (float(refusal_score(rows, openers).mean()) for rows in log_probs)
    frequency = (torch.cat(codes) != 0).float().mean(0)
    return Attribution(scores, (harmful, harmless), means, frequency, refused - answered, openers)


def last_states(
    model: Model, groups: Sequence[Sequence[Prompt]], layer: int
) -> tuple[Site, list[Tensor], list[Tensor]]:
    """The block's output, each group's activations (N, D) there, and log-probabilities (N, V)."""
    site, logits = Site(layer, "resid_post"), Site(-1, "logits")
    reads = [last_token(model, prompts, [site, logits]) for prompts in groups]
    return site, [rows[site] for rows in reads], [rows[logits].log_softmax(1) for rows in reads]


def scores_at(
    model: Model, prompts: Sequence[Prompt], site: Site, token_ids: Tensor, states: Tensor
) -> tuple[Tensor, Tensor]:
    """What refusal scores prompts have whose last tokens have other activations, and their slopes.

    Args:
        model: the model.
        prompts: N of them.
        site: a `resid_post`; its positions are not used.
        token_ids: (K,) refusal openers.
        states: (N, D) what the activations at the last tokens become.

    Returns:
        (N,) float64 scores and (N, D) float32 gradients by `states`.
    """
    scores, slopes = torch.zeros(len(prompts)).double(), torch.zeros(len(prompts), model.width)
    for members in equal_lengths(prompts, _BATCH):
        group = [prompts[at] for at in members]
        ids, roles = (torch.stack([getattr(p, name) for p in group]) for name in ("ids", "roles"))
        read, rows = Site(-1, "logits").at(ids.shape[1]), states[members].to(model.device)
        put = ReplaceLast(site, rows.requires_grad_())
        with torch.enable_grad():
            logits = model.trace(ids, [read], interventions=[put], roles=roles)[read][:, 0]
            found = refusal_score(logits.double().log_softmax(1), token_ids.to(logits.device))
            (gradient,) = torch.autograd.grad(found.sum(), rows)
        scores[members], slopes[members] = found.detach().cpu(), gradient.float().cpu()
    return scores, slopes
