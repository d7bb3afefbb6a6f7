"""Sparse autoencoders of residual-stream activations: TopK and AbsTopK latents.

An activation is written as a sum of few of many directions. TopK (arXiv 2406.04093) keeps the k
largest pre-activations where they are positive; AbsTopK (arXiv 2510.00404) keeps the k of largest
magnitude with their signs, so that one latent can stand for both sides of a concept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor
from torch.nn.functional import normalize

from attacks.core.errors import BadInput
from attacks.core.parsing import from_json

Kind = Literal["abs-topk", "topk"]

#: Adam's learning rate, and how many activations are drawn for a step.
_RATE, _BATCH = 1e-3, 256
_TENSORS = ("encoder", "bias", "decoder", "middle", "scale")


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """x = middle + scale * sum_i f_i d_i + rest, with at most k of the M latents f_i other than 0.

    All float32 on the CPU.
    """

    encoder: Tensor
    """(M, D)"""
    bias: Tensor
    """(M,)"""
    decoder: Tensor
    """(M, D) unit rows d_i"""
    middle: Tensor
    """(D,) mean activation"""
    scale: Tensor
    """() root mean square of an activation's coordinates about `middle`"""
    kind: Kind
    k: int
    layer: int
    """Block whose output (`resid_post`) it was fitted on."""

    def pre(self, states: Tensor) -> Tensor:
        """(..., M) pre-activations of activations (..., D)."""
        away = (states - self.middle) / self.scale
        return away @ self.encoder.T + self.bias

    def encode(self, states: Tensor) -> Tensor:
        """(..., M) latents of activations (..., D), at most k of them not 0."""
        return sparse(self.pre(states), self.k, self.kind)

    def decode(self, latents: Tensor) -> Tensor:
        """(..., D) the activations that latents (..., M) stand for."""
        return self.middle + self.scale * (latents @ self.decoder)

    def unexplained(self, states: Tensor) -> float:
        """Share of the variance about `middle` of activations (N, D) that is not reconstructed."""
        rest = (states - self.decode(self.encode(states))).square().sum()
        return float(rest / (states - self.middle).square().sum())

    def save(self, path: Path) -> None:
        """One safetensors file; `load` reads it."""
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        about = {"kind": self.kind, "k": self.k, "layer": self.layer}
        save_file(tensors, path, {"latents": json.dumps(about)})

    @classmethod
    def load(cls, path: Path) -> SparseAutoencoder:
        """What `save` wrote.

        Raises:
            BadInput: no such file, or another one.
        """
        if not path.is_file():
            raise BadInput(f"sparse autoencoder '{path}': no such file")
        try:
            with safe_open(path, "pt") as file:
                about = from_json(file.metadata()["latents"])
                tensors = {name: file.get_tensor(name).float() for name in _TENSORS}
            found = cls(**tensors, **about)
            whole = found.encoder.shape == found.decoder.shape and found.kind in get_args(Kind)
            whole = whole and 1 <= found.k <= len(found.bias) == len(found.encoder)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise BadInput(
                f"sparse autoencoder '{path}' is not a file that `SparseAutoencoder.save` wrote"
            )
        return found


def sparse(pre: Tensor, k: int, kind: Kind) -> Tensor:
    """(..., M): all but k of the pre-activations (..., M) made 0.

    Kept are the k of largest magnitude ("abs-topk"), or those of the k largest that are positive
    ("topk").
    """
    ranked = pre.abs() if kind == "abs-topk" else pre
    at = ranked.topk(k, dim=-1).indices
    kept = pre.gather(-1, at)
    return torch.zeros_like(pre).scatter(-1, at, kept if kind == "abs-topk" else kept.relu())


def fit_autoencoder(
    states: Tensor,
    *,
    layer: int,
    latents: int,
    k: int,
    kind: Kind,
    steps: int,
    rng: Generator,
) -> SparseAutoencoder:
    """Fit an autoencoder to activations (N, D) by Adam on the squared error.

    The decoder starts at random activations, so that few latents are never kept, and the encoder
    at its transpose.

    Args:
        states: activations at block `layer`'s output.
        layer: the block.
        latents: M, how many.
        k: how many of them are kept for an activation.
        kind: which are.
        steps: of Adam.
        rng: draws the start and the batches.

    Raises:
        BadInput: a kind that is none, `k` outside 1..M, or no activations that differ.
    """
    if kind not in get_args(Kind):
        raise BadInput(f"sparse autoencoder: kind '{kind}'; valid: {', '.join(get_args(Kind))}")
    if not 1 <= k <= latents:
        raise BadInput(f"sparse autoencoder: k={k}; valid: 1 to latents={latents}")
    if steps < 0:
        raise BadInput(f"sparse autoencoder: steps={steps}; valid: 0 or more")
    middle = states.double().mean(0).float()
    scale = (states - middle).square().mean().sqrt()
    if not float(scale) > 0:
        raise BadInput("sparse autoencoder: the activations to fit on are all the same")
    rows = (states - middle) / scale
    decoder = normalize(_drawn(rows, latents, rng), dim=1)
    parts = [decoder.clone(), torch.zeros(latents), decoder.clone()]
    for part in parts:
        part.requires_grad_()
    encoder, bias, decoder = parts
    optimiser = torch.optim.Adam(parts, lr=_RATE)
    with torch.enable_grad():
        for _ in range(steps):
            batch = _drawn(rows, _BATCH, rng)
            rest = batch - sparse(batch @ encoder.T + bias, k, kind) @ decoder
            loss = rest.square().sum() / batch.square().sum()
            for part, gradient in zip(parts, torch.autograd.grad(loss, parts), strict=True):
                part.grad = gradient
            optimiser.step()
            with torch.no_grad():
                decoder.copy_(normalize(decoder, dim=1))
    return SparseAutoencoder(
        encoder.detach(), bias.detach(), decoder.detach(), middle, scale, kind, k, layer
    )


def _drawn(rows: Tensor, count: int, rng: Generator) -> Tensor:
    """`count` of the rows, drawn with replacement."""
    return rows[torch.randint(len(rows), (count,), generator=rng)]
