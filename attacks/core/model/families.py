"""Where a transformer keeps its blocks and residual writes, found by feature and not by name."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import nn

from attacks.core.errors import BadInput
from attacks.core.sites import ROUTING

#: Children of a block that write to the residual stream, the outermost (a norm after the block's
#: output, as in Gemma 2 and 3, OLMo 2 and GLM-4) first.
_OUTPUT_NORMS = (
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
    ("post_attention_layernorm", "post_feedforward_layernorm"),
)
_ATTENTION = ("self_attn", "attention", "attn", "self_attention")
_MLP = ("mlp", "feed_forward", "block_sparse_moe", "ffn")
#: Children of an attention module that map the heads' outputs to the residual stream.
_PROJECTION = ("o_proj", "out_proj", "c_proj", "dense", "wo")
#: Siblings of the experts that choose among them.
_ROUTER = ("gate", "router")
_EXPERTS = "experts"
#: Siblings of the list of blocks that normalise the last block's output.
_FINAL_NORM = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")


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
    projections: tuple[str | None, ...]
    """For each block, path in it of the output projection of its attention."""
    heads: int
    """Query heads; 0 where the configuration does not say."""
    final_norm: str | None
    """Path of the norm between the last block and the unembedding."""
    routers: tuple[str | None, ...] = ()
    """For each block, path in it of the module that chooses its experts; None in dense blocks."""

    def module_path(self, layer: int, name: str) -> str:
        """Path of the module whose input (`resid_pre`, `z`) or output is the site.

        For `scores` and `pattern` it is the first module that runs after they are computed.

        Raises:
            BadInput: this family has no known module for the site.
        """
        block = f"{self.blocks}.{layer}"
        if name in ("resid_pre", "resid_post"):
            return block
        if name in ("scores", "pattern", "z"):
            projection = self.projections[layer]
            if projection is None or not self.heads:
                raise BadInput(
                    f"{self.family}: no output projection of attention heads known in block "
                    f"{layer}, so no site '{name}'"
                )
            return f"{block}.{projection}"
        if name in ROUTING:
            router = self.routers[layer]
            if router is None:
                where = f"in block {layer}" if any(self.routers) else "(a dense model)"
                raise BadInput(f"{self.family}: no experts {where}, so no site '{name}'")
            return f"{block}.{router}"
        child = self.attn_out if name == "attn_out" else self.mlp_out
        if child is None:
            raise BadInput(f"{self.family}: no module known for site '{name}'")
        return f"{block}.{child}"

    @property
    def expert_layers(self) -> tuple[int, ...]:
        """Blocks whose MLP is a mixture of experts; shallower ones may be dense."""
        return tuple(layer for layer, router in enumerate(self.routers) if router is not None)

    def attention_path(self, layer: int) -> str:
        """Path of the attention module, the parent of the output projection.

        Raises:
            BadInput: this family has no known one in this block.
        """
        return self.module_path(layer, "pattern").rpartition(".")[0]

    def by_head(self, z: Any) -> Any:
        """The input (B, T, H d) of an output projection as (B, T, H, d).

        Raises:
            BadInput: it does not divide into the heads of the configuration.
        """
        if z.shape[-1] % self.heads:
            raise BadInput(
                f"{self.family}: {z.shape[-1]} head outputs do not divide into {self.heads} heads"
            )
        return z.unflatten(-1, (self.heads, -1))


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
    attn_out = next((name for name in _ATTENTION if name in children), None)
    mlp_out = next((name for name in _MLP if name in children), None)
    for attn, mlp in _OUTPUT_NORMS:
        if attn in children and mlp in children:
            attn_out, mlp_out = attn, mlp
            break
    heads = getattr(model.config.get_text_config(), "num_attention_heads", 0)  # type: ignore[operator, union-attr]
    owner, _, _ = blocks.rpartition(".")
    siblings = dict((attrgetter(owner)(model) if owner else model).named_children())
    norm = next((name for name in _FINAL_NORM if name in siblings), None)
    return Structure(
        family,
        blocks,
        attn_out,
        mlp_out,
        tuple(_projection(block) for block in attrgetter(blocks)(model)),
        heads if isinstance(heads, int) else 0,
        norm and f"{owner}.{norm}".lstrip("."),
        tuple(_router(block) for block in attrgetter(blocks)(model)),
    )


def _projection(block: nn.Module) -> str | None:
    """Path in a block of its attention's output projection; None in blocks without attention."""
    for name, attention in block.named_children():
        if name in _ATTENTION:
            for child, _ in attention.named_children():
                if child in _PROJECTION:
                    return f"{name}.{child}"
    return None


def _router(block: nn.Module) -> str | None:
    """Path in a block of the module beside its experts that chooses among them.

    Where there are experts and no such module, the path of the experts' parent, which
    `attacks.core.model.routing` then refuses by name.
    """
    for path, module in block.named_modules():
        children = dict(module.named_children())
        if _EXPERTS in children:
            name = next((name for name in _ROUTER if name in children), None)
            return f"{path}.{name}".lstrip(".") if name else path
    return None


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
