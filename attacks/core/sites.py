"""Where activations are read and changed: site names as in TransformerLens."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

#: In the order in which a block computes them; a trace reads them in this order.
SITE_ORDER = (
    "tokens",
    "embed",
    "resid_pre",
    "scores",
    "pattern",
    "z",
    "attn_out",
    "router",
    "gates",
    "mlp_post",
    "mlp_out",
    "resid_post",
    "logits",
)

#: The sites that are read from eager attention; nothing can be changed there.
ATTENTION_WEIGHTS = ("scores", "pattern")

#: The sites of a block whose MLP is a mixture of experts.
ROUTING = ("router", "gates")

#: The sites whose values are added to the residual stream, or are the stream at a block's input.
RESIDUAL_WRITES = ("resid_pre", "attn_out", "mlp_out")


@dataclass(frozen=True)
class Site:
    """A value inside the forward pass.

    `attn_out` and `mlp_out` are what is added to the residual stream (after the block's output norm
    in families that have one). `resid_pre` of block l is its input, `resid_post` its output;
    `embed` is what the embedding module gives for each token, and `tokens` are the tokens
    themselves, which only a `ShieldedModel` reads. `embed`, `tokens` and `logits` belong to no
    layer and have layer -1. `scores` are attention scores after scaling and
    soft cap, before the mask; `pattern` is their masked softmax; `z` is each head's output, the
    input of attention's output projection, and `mlp_post` the input of the MLP's. In blocks with
    experts, `router` are the router's logits before softmax and top-k, and `gates` the weights with
    which the experts' outputs are added up, zero for all that were not chosen. Positions (of
    queries, for `scores` and `pattern`) count from the start of the conversation; negative ones
    count from its end (not from the end of a target after it).
    """

    layer: int
    """From 0; -1 for what belongs to no layer."""
    name: str
    """One of `SITE_ORDER`."""
    positions: tuple[int, ...] = (-1,)
    """Which tokens."""

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


Trace = dict[Site, Tensor]
"""Activations (B, P, D) at each site's positions P; (B, P, V) for `logits`, (B, P) int64 for
`tokens`, (B, P, H, d) for `z`, (B, P, E) for `router` and `gates`, and (B, P, H, K) for `scores`
and `pattern`, with keys K from the start of the conversation, those in a prefix cache included."""
