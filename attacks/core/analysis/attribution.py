"""Which layers and heads make a model refuse: direct attribution, patching, attention to slots.

After the notebook of arXiv 2503.06269, with its two faults fixed: averages run over all prompts,
and heads are patched at the last position only, so that prompts need not be aligned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attacks.core.errors import BadInput
from attacks.core.interventions import Context, Intervention
from attacks.core.model.families import at_path
from attacks.core.prompt import Prompt
from attacks.core.reading.states import last_of, last_token, next_token_log_probs
from attacks.core.refusals.openers import refusal_score
from attacks.core.sites import Site

if TYPE_CHECKING:
    from attacks.core.model import Model

MOST_PAIRS = 16
"""Pairs that `head_patching` uses at most: each costs a forward pass of one token per head."""


def answer_direction(model: Model, refuse_ids: Sequence[int], accept_ids: Sequence[int]) -> Tensor:
    """(D,) float32: mean unembedding of refusal openers minus that of openers of answers."""
    table = model.hf.get_output_embeddings().weight.detach()
    refuse, accept = (
        table[torch.as_tensor(ids, device=table.device)].float().mean(0)
        for ids in (refuse_ids, accept_ids)
    )
    direction: Tensor = (refuse - accept).cpu()
    return direction


def layer_attribution(model: Model, texts: Sequence[str], direction: Tensor) -> Tensor:
    """(L + 1,) float32: what the residual stream says for `direction` at each depth.

    Mean over texts of the stream at the last token, at each block's input and at the last block's
    output, through the final norm with its scale frozen at that of the last block's output. The
    norm's additive bias, the unembedding's, and what some families do to logits afterwards (a
    factor, a soft cap) are left out.

    Args:
        model: the model.
        texts: asked as plain conversations.
        direction: (D,) in unembedding space, such as `answer_direction`.

    Raises:
        BadInput: this family has no known final norm.
    """
    sites = [Site(layer, "resid_pre") for layer in range(model.n_layers)]
    final = Site(model.n_layers - 1, "resid_post")
    states = last_token(model, texts, [*sites, final], share=True)
    norm = _final_norm(model)
    weights = norm.fold(direction.float().cpu())
    scale = norm.scale(states[final])
    return torch.stack([(states[site] @ weights / scale).mean() for site in [*sites, final]])


def head_attribution(model: Model, texts: Sequence[str], direction: Tensor) -> Tensor:
    """(L, H) float32: what each head writes for `direction` at the last token, mean over texts.

    z W_O of each head, through the final norm as in `layer_attribution`. Where a norm follows
    attention (Gemma 2 and 3, OLMo 2, GLM-4), its scale is frozen at that of the whole attention
    output. The output projection's bias belongs to no head and is left out.

    Raises:
        BadInput: this family has no known final norm or output projection, or its blocks add
            something else than their attention and MLP outputs.
    """
    model.checks.residual_writes()
    heads = [Site(layer, "z") for layer in range(model.n_layers)]
    final = Site(model.n_layers - 1, "resid_post")
    states = last_token(model, texts, [*heads, final], share=True)
    norm = _final_norm(model)
    readout = norm.fold(direction.float().cpu())
    return _head_writes(model, [states[site] for site in heads], readout, norm.scale(states[final]))


def head_projections(model: Model, sequences: Sequence[Tensor], direction: Tensor) -> Tensor:
    """(L, H) float32: how long each head's output is along `direction`, mean over sequences.

    <o, r> / |r| with o = z W_O of the head at the last position (arXiv 2510.06036, whose code calls
    it a cosine similarity although it is not divided by |o|). The most negative heads write most
    against `direction`. As `head_attribution`, without the final norm.

    Args:
        model: the model.
        sequences: ids, (T,) each.
        direction: (D,) in the residual stream, the same for all layers.

    Raises:
        BadInput: as `head_attribution`.
    """
    model.checks.residual_writes()
    sites = [Site(layer, "z") for layer in range(model.n_layers)]
    states = last_of(model, sequences, sites)
    unit = (direction / direction.norm()).float().cpu()
    return _head_writes(model, [states[site] for site in sites], unit, torch.ones(len(sequences)))


def _head_writes(model: Model, heads: Sequence[Tensor], readout: Tensor, scale: Tensor) -> Tensor:
    """(L, H): what heads (N, H, d) of each layer write for `readout` (D,), over `scale` (N,)."""
    rows = []
    for layer, z in enumerate(heads):
        projection = at_path(model.hf, model.structure.module_path(layer, "z"))
        weights, divisor = readout, scale
        path = model.structure.module_path(layer, "attn_out")
        if path != model.structure.attention_path(layer):
            after = _FrozenNorm.of(at_path(model.hf, path), model.width)
            weights = after.fold(readout)
            divisor = scale * after.scale(_apply(projection, z.flatten(1)))
        by_head = _transposed(projection, weights, z[0].numel()).view(z.shape[1:])
        rows.append(((z * by_head).sum(-1) / divisor.unsqueeze(1)).mean(0))
    return model.structure.scale * torch.stack(rows)


def logit_lens(model: Model, directions: Tensor) -> Tensor:
    """(K, V) float32: how much each of the residual directions (K, D) raises each token's logit.

    Through the final norm's gain, centred where that norm centres, and the unembedding. The norm's
    scale depends on a prompt and not on the direction, so values compare within a row only.

    Raises:
        BadInput: this family has no known final norm.
    """
    table = model.hf.get_output_embeddings().weight.detach().float().cpu()
    logits: Tensor = _final_norm(model).linear(directions.float().cpu()) @ table.T
    return logits


def final_norm_output(model: Model, states: Tensor) -> Tensor:
    """(N, D) float32 residual states (N, D) through the norm before the unembedding.

    Raises:
        BadInput: this family has no known final norm.
    """
    return _apply(_final_norm(model).module, states)


@torch.no_grad()
def head_patching(
    model: Model, harmful: Sequence[str], harmless: Sequence[str], token_ids: Tensor
) -> Tensor:
    """(L, H) float32: how much of the refusal each head carries over from its harmful twin.

    One head's z of a harmful prompt's last position is put into the harmless prompt's run, at its
    last position. With s the refusal score over `token_ids`, averaged over pairs first, the effect
    is (s_patched - s_harmless) / (s_harmful - s_harmless): 0 is none, 1 all of it.

    Args:
        model: the model.
        harmful: texts; the first `MOST_PAIRS` are used.
        harmless: the twin of each, in the same order.
        token_ids: (K,) refusal openers.

    Raises:
        BadInput: no pairs or unpaired texts, a family without known output projection, or refusal
            scores that do not differ, so that there is nothing to carry over.
    """
    if not harmful or len(harmful) != len(harmless):
        raise BadInput(
            f"patching needs pairs, got {len(harmful)} harmful and {len(harmless)} harmless texts"
        )
    harmful, harmless = harmful[:MOST_PAIRS], harmless[:MOST_PAIRS]
    token_ids = token_ids.cpu()
    high, low = (
        refusal_score(next_token_log_probs(model, texts, share=True), token_ids).mean()
        for texts in (harmful, harmless)
    )
    if abs(float(high - low)) < 1e-6:
        raise BadInput("harmful and harmless prompts have the same refusal score: nothing to patch")
    sites = [Site(layer, "z") for layer in range(model.n_layers)]
    donors = last_token(model, harmful, sites, share=True)
    patched = torch.zeros(model.n_layers, model.structure.heads, dtype=torch.float64)
    for index, text in enumerate(harmless):
        ids = model.plain(text).ids
        # Nothing before the last position changes, so every run shares it.
        prefix = model.prefix(ids[:-1])
        read = Site(-1, "logits", (len(ids) - 1,))
        last = ids[-1:].expand(model.structure.heads, 1)
        for site in sites:
            swap = _ReplaceHeads(site, donors[site][index])
            trace = model.trace(last, [read], prefix=prefix, interventions=[swap])
            log_probs = trace[read][:, 0].float().cpu().log_softmax(1)
            patched[site.layer] += refusal_score(log_probs, token_ids)
    return ((patched / len(harmless) - low) / (high - low)).float()


@torch.no_grad()
def hijack_scores(
    model: Model, prompt: Prompt, candidates: Tensor, *, batch_size: int = 64
) -> Tensor:
    """(L, H) float32: attention of the prompt's last position to the slots, mean over candidates.

    Args:
        model: the model.
        prompt: with S slots.
        candidates: (N, S) fillings; subtract the scores of failures from those of successes to see
            which heads an attack works through.
        batch_size: candidates in one pass.

    Raises:
        BadInput: no slots, no candidates, or a family whose attention cannot be read.
    """
    if not prompt.n_slots or not len(candidates):
        raise BadInput("hijack scores need a prompt with slots and at least one filling")
    sites = [Site(layer, "pattern").at(len(prompt.ids)) for layer in range(model.n_layers)]
    total = torch.zeros(model.n_layers, model.structure.heads)
    for start in range(0, len(candidates), batch_size):
        chunk = candidates[start : start + batch_size]
        trace = model.trace(prompt.fill(chunk), sites)
        total += torch.stack(
            [trace[site][:, 0, :, prompt.slots].float().sum((0, 2)).cpu() for site in sites]
        )
    return total / len(candidates)


@dataclass(frozen=True, eq=False)
class _ReplaceHeads(Intervention):
    """In row h of the batch, head h's output at the last position becomes the donor's."""

    site: Site
    donor: Tensor
    """(H, d)"""

    @property
    def sites(self) -> tuple[Site, ...]:
        return (self.site,)

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        changed = activation.clone()
        rows = torch.arange(len(self.donor), device=activation.device)
        changed[rows, -1, rows] = self.donor.to(activation.device, activation.dtype)
        return changed


@dataclass(frozen=True, eq=False)
class _FrozenNorm:
    """A norm as a linear map once its scale is fixed: gain * (x - mean, if it centres) / scale."""

    module: Any
    gain: Tensor
    """(D,)"""
    bias: Tensor
    """(D,)"""
    centred: bool

    @classmethod
    def of(cls, module: Any, width: int) -> _FrozenNorm:
        """Found by what the module does: parameters are named and offset differently by family.

        Alternating signs have mean 0 and root mean square 1, so any norm only applies its gain;
        the factor makes its epsilon vanish. A constant goes to 0 where the mean is subtracted.
        """
        signs = torch.ones(width)
        signs[1::2] = -1
        zero, ones, alternating = _apply(
            module, 1e3 * torch.stack([torch.zeros(width), torch.ones(width), signs])
        )
        gain = (alternating - zero) * signs
        return cls(module, gain, zero, bool((ones - zero).norm() < 0.5 * gain.norm()))

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def fold(self, direction: Tensor) -> Tensor:
        """(D,) whose product with an input is the output's with `direction`, up to the scale."""
        return self._centre(self.gain * direction)

    def linear(self, x: Tensor) -> Tensor:
        """The norm's output for (..., D), up to the scale and the bias."""
        return self.gain * self._centre(x)

    def scale(self, x: Tensor) -> Tensor:
        """(N,) by which the norm divides each row of (N, D), epsilon included."""
        scaled = self.linear(x)
        output = _apply(self.module, x) - self.bias
        return (scaled * scaled).sum(-1) / (scaled * output).sum(-1)


def _final_norm(model: Model) -> _FrozenNorm:
    path = model.structure.final_norm
    if path is None:
        raise BadInput(f"{model.structure.family}: no norm known before the unembedding")
    return _FrozenNorm.of(at_path(model.hf, path), model.width)


@torch.no_grad()
def _apply(module: Any, x: Tensor) -> Tensor:
    """(N, E) float32 on the CPU: the module's output for the rows of `x`, in its own dtype."""
    like = next(module.parameters(), x)
    output: Tensor = module(x.to(like.device, like.dtype).unsqueeze(0))
    return output[0].float().cpu()


def _transposed(projection: Any, weights: Tensor, width: int) -> Tensor:
    """(E,) float32: `weights` (D,) through the transposed linear map of a projection from E.

    As the gradient of its output, since families keep the matrix one way or the other.
    """
    like = next(projection.parameters())
    with torch.enable_grad():
        x = torch.zeros(1, 1, width, device=like.device, dtype=like.dtype, requires_grad=True)
        output = (projection(x)[0, 0].float() * weights.to(like.device)).sum()
        (gradient,) = torch.autograd.grad(output, x)
    return gradient[0, 0].float().cpu()
