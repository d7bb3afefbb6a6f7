"""Where a transformer keeps its blocks and residual writes, found by feature and not by name."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import nn

from attacks.core.errors import BadInput

#: Children of a block that write to the residual stream, the outermost (a norm after the block's
#: output, as in Gemma 2 and 3, OLMo 2 and GLM-4) first.
_OUTPUT_NORMS = (
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
    ("post_attention_layernorm", "post_feedforward_layernorm"),
)
_ATTENTION = ("self_attn", "attention", "attn", "self_attention")
_MLP = ("mlp", "feed_forward", "block_sparse_moe", "ffn")


@dataclass(frozen=True)
class Structure:
    """Module paths inside a causal language model, relative to it."""

    family: str
    """The architecture's class name, for messages."""
    blocks: str
    """Path of the list of blocks."""
    attn_out: str | None
    """Name of the child of a block whose output attention adds to the residual stream."""
    mlp_out: str | None

    def module_path(self, layer: int, name: str) -> str:
        """Path of the module whose input (`resid_pre`) or output is the site.

        Raises:
            BadInput: this family has no known module for the site.
        """
        block = f"{self.blocks}.{layer}"
        if name in ("resid_pre", "resid_post"):
            return block
        child = self.attn_out if name == "attn_out" else self.mlp_out
        if child is None:
            raise BadInput(f"{self.family}: no module known for site '{name}'")
        return f"{block}.{child}"


def structure_of(model: nn.Module, n_layers: int) -> Structure:
    """Find the blocks and what they write to the residual stream.

    Raises:
        BadInput: no list of `n_layers` blocks.
    """
    family = type(model).__name__
    lists = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise BadInput(f"{family}: no list of {n_layers} decoder blocks found")
    blocks = min(lists, key=lambda path: path.count("."))
    block = attrgetter(blocks)(model)[0]
    children = dict(block.named_children())
    for attn, mlp in _OUTPUT_NORMS:
        if attn in children and mlp in children:
            return Structure(family, blocks, attn, mlp)
    attn_out = next((name for name in _ATTENTION if name in children), None)
    mlp_out = next((name for name in _MLP if name in children), None)
    return Structure(family, blocks, attn_out, mlp_out)


def at_path(root: Any, path: str) -> Any:
    """The module, or nnsight's envoy of it, at a dotted path with numeric indices."""
    for part in path.split("."):
        root = root[int(part)] if part.isdigit() else getattr(root, part)
    return root


def first(output: Any) -> Any:
    """The activation in a module's output: attention modules return it first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Any, value: Any) -> Any:
    """`output` with its activation replaced by `value`."""
    return (value, *output[1:]) if isinstance(output, tuple) else value
