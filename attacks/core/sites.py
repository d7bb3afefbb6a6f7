"""Where activations are read and changed: site names as in TransformerLens."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

#: In the order in which a block computes them; a trace reads them in this order.
SITE_ORDER = ("resid_pre", "attn_out", "mlp_out", "resid_post", "logits")

#: The sites whose values are added to the residual stream, or are the stream at a block's input.
RESIDUAL_WRITES = ("resid_pre", "attn_out", "mlp_out")


@dataclass(frozen=True)
class Site:
    """A value inside the forward pass.

    `attn_out` and `mlp_out` are what is added to the residual stream (after the block's output norm
    in families that have one). `resid_pre` of block l is its input, `resid_post` its output;
    `logits` belongs to no layer and has layer -1. Positions count from the start of the
    conversation; negative ones count from its end (not from the end of a target after it).
    """

    layer: int
    name: str
    positions: tuple[int, ...] = (-1,)

    def __post_init__(self) -> None:
        if self.name not in SITE_ORDER:
            raise ValueError(f"unknown site '{self.name}'; valid: {', '.join(SITE_ORDER)}")

    def at(self, length: int) -> Site:
        """This site with its positions made absolute, in a conversation of `length` tokens."""
        return replace(self, positions=tuple(p + length if p < 0 else p for p in self.positions))

    def depth(self, n_layers: int) -> tuple[int, int]:
        """Sort key: the order in which sites are computed."""
        layer = n_layers if self.name == "logits" else self.layer
        return (layer, SITE_ORDER.index(self.name))


#: Activations (B, P, D), or (B, P, V) for logits: only the rows at each site's positions.
Trace = dict[Site, Tensor]
