"""Where a transformer keeps its blocks and residual writes, found by feature and not by name."""

from __future__ import annotations

import inspect
import sys
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
#: Children of a block that hold its MLP, or its experts.
MLP = ("mlp", "feed_forward", "block_sparse_moe", "ffn")
#: Children of an attention module that map the heads' outputs to the residual stream.
_PROJECTION = ("o_proj", "out_proj", "c_proj", "dense", "wo")
#: Children of an MLP that map its hidden activations to the residual stream.
_MLP_PROJECTION = ("down_proj", "c_proj", "fc2", "dense_4h_to_h", "fc_out")
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
    """Path in a block of the module whose output attention adds to the residual stream."""
    mlp_out: str | None
    projections: tuple[str | None, ...]
    """For each block, path in it of the output projection of its attention."""
    heads: int
    """Query heads; 0 where the configuration does not say."""
    final_norm: str | None
    """Path of the norm between the last block and the unembedding."""
    mlp_projections: tuple[str | None, ...] = ()
    """For each block, path in it of the output projection of its MLP; None for a mixture."""
    routers: tuple[str | None, ...] = ()
    """For each block, path in it of the module that chooses its experts; None in dense blocks."""
    scale: float = 1.0
    """By which blocks multiply what attention and MLP give when they add it (Granite)."""

    def module_path(self, layer: int, name: str) -> str:
        """Path of the module whose input (`resid_pre`, `z`, `mlp_post`) or output is the site.

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
        if name == "mlp_post":
            down = self.mlp_projections[layer] if self.mlp_projections else None
            if down is None:
                raise BadInput(
                    f"{self.family}: no output projection of an MLP known in block {layer}, so no "
                    f"site '{name}'"
                )
            return f"{block}.{down}"
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

    def value(self, name: str, output: Any) -> Any:
        """The activation at the site `name`, from the output of its module."""
        value = first(output)
        return value * self.scale if self._scaled(name) else value

    def with_value(self, name: str, output: Any, value: Any) -> Any:
        """The module's `output` that makes `value` the activation at the site."""
        return with_first(output, value / self.scale if self._scaled(name) else value)

    def _scaled(self, name: str) -> bool:
        return name in ("attn_out", "mlp_out") and self.scale != 1

    @property
    def norms_outputs(self) -> bool:
        """Whether a norm stands between what a block computes and the residual stream."""
        return any(self.attn_out == attn for attn, _ in _OUTPUT_NORMS)

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
    children = [dict(block.named_children()) for block in attrgetter(blocks)(model)]
    attn_out, mlp_out = _write(_ATTENTION, children), _write(MLP, children)
    for attn, mlp in _OUTPUT_NORMS:
        if all(attn in block and mlp in block for block in children):
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
        tuple(_projection(block, _ATTENTION, _PROJECTION) for block in attrgetter(blocks)(model)),
        heads if isinstance(heads, int) else 0,
        norm and f"{owner}.{norm}".lstrip("."),
        tuple(_projection(block, MLP, _MLP_PROJECTION) for block in attrgetter(blocks)(model)),
        tuple(_router(block) for block in attrgetter(blocks)(model)),
        float(getattr(model.config.get_text_config(), "residual_multiplier", None) or 1.0),  # type: ignore[operator, union-attr]
    )


def context_of(config: Any) -> int:
    """The longest sequence that a model with this configuration takes.

    With LongRoPE (arXiv 2402.13753) as transformers has it, the longest before all positions are
    rotated otherwise: beyond it, keys of a beginning, or of a shorter row, would be others.
    """
    longest = int(getattr(config, "max_position_embeddings", None) or sys.maxsize)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return longest
    return min(longest, int(rope.get("original_max_position_embeddings") or longest))


def _write(names: tuple[str, ...], blocks: list[dict[str, nn.Module]]) -> str | None:
    """Path in a block of the module that writes to the stream; None unless all blocks have it.

    A module that is given the residual (as in BLOOM and MPT) returns it with the write added; what
    it adds is then the output of its last linear map.
    """
    name = next((name for name in names if all(name in block for block in blocks)), None)
    if name is None:
        return None
    module = blocks[0][name]
    if "residual" not in inspect.signature(module.forward).parameters:
        return name
    maps = [child for child, inner in module.named_children() if isinstance(inner, nn.Linear)]
    return f"{name}.{maps[-1]}" if maps else None


def _projection(
    block: nn.Module, parents: tuple[str, ...], projections: tuple[str, ...]
) -> str | None:
    """Path in a block of the output projection of one of `parents`; None where there is none."""
    for name, parent in block.named_children():
        if name in parents:
            for child, _ in parent.named_children():
                if child in projections:
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
