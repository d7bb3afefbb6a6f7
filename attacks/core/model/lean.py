"""Blocks like Llama's with less traffic to memory: the same products, fewer tensors in between.

In a small model most of a pass goes to what stands between the matrix products: rotating queries
and keys, gating, copies of keys for grouped heads. On a CPU and without a gradient this can be
done in place, in tensors that nobody else sees. Modules are still called as modules, so hooks on
them and edits of their weights do what they do otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import unwrap
from types import CodeType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2

_ROTATION = ("apply_rotary_pos_emb", "rotate_half")
#: Tokens that a model is tried on.
_TOKENS = 12


def made_lean(model: nn.Module) -> nn.Module:
    """`model`, with another `forward` in those modules whose own one is, word for word, Llama's.

    Attention may also be Mistral's or Qwen2's, which hand on a window that the mask already holds.
    All others, and modules whose `forward` somebody else has replaced, are left as they are; so is
    a model that would not compute the same, such as one of a later transformers. Whatever the
    family, the head takes its rows as one matrix.
    """
    if next(model.parameters()).device.type != "cpu":
        return model
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None and _own(head) is nn.Linear.forward:
        head.forward = MethodType(_head, head)
    found = {module: own for module in model.modules() if (own := replacement(module))}
    if not found:
        return model
    before = _tried(model)
    for module, forward in found.items():
        module.forward = MethodType(forward, module)
    # Rounding, in standard deviations of logits.
    exact = next(model.parameters()).dtype in (torch.float32, torch.float64)
    most = (1e-3 if exact else 0.1) * before.std()
    if not bool((_tried(model) - before).abs().max() <= most):
        for module in found:
            del module.forward
    return model


def replacement(module: nn.Module) -> Callable[..., Any] | None:
    """The `forward` that a module may have instead of its own, None for its own."""
    if _own(module):
        for forward, originals in _FORWARDS.items():
            if any(_same(type(module), original) for original in originals):
                return forward
    return None


def _own(module: nn.Module) -> Callable[..., Any] | None:
    """The `forward` of its class, None where somebody has replaced it."""
    return None if "forward" in vars(module) else type(module).forward


@torch.no_grad()
def _tried(model: nn.Module) -> Tensor:
    """(N, V) float32 logits of a padded batch."""
    words = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    ids = torch.arange(2 * _TOKENS).view(2, _TOKENS) % words
    mask = torch.ones_like(ids)
    mask[1, : _TOKENS // 2] = 0
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits[mask.bool()].float()


def _same(one: type, other: type) -> bool:
    """Whether two modules' classes compute the same in `forward`, and rotate alike."""
    if _words(getattr(one, "forward", None)) != _words(vars(other)["forward"]):
        return False
    ours, theirs = (vars(sys.modules[each.__module__]) for each in (one, other))
    return "Attention" not in other.__name__ or all(
        _words(ours.get(name)) == _words(theirs[name]) for name in _ROTATION
    )


def _words(function: Any) -> tuple[object, ...]:
    """What a function does, apart from its name and documentation, whatever is wrapped around it.

    A closure, which may do anything, is like no other function.
    """
    plain = unwrap(function)
    code: CodeType | None = getattr(plain, "__code__", None)
    if code is None or code.co_freevars:
        return (object(),)
    consts = tuple(each for each in code.co_consts if each != plain.__doc__)
    return (code.co_code, code.co_names, code.co_varnames, consts)


def _applies(module: nn.Module, inputs: Tensor) -> bool:
    return not torch.is_grad_enabled() and inputs.device.type == "cpu" and not module.training


def _head(self: Any, x: Tensor) -> Tensor:
    # The last positions of a batch are no view of one matrix. For such an input torch repeats the
    # weights for each row: gigabytes with a large vocabulary in bfloat16, a minute for a batch.
    logits: Tensor = nn.functional.linear(x.flatten(0, -2), self.weight, self.bias)
    return logits.view(*x.shape[:-1], -1)


def _mlp(self: Any, x: Tensor) -> Tensor:
    if not _applies(self, x):
        return type(self).forward(self, x)  # type: ignore[no-any-return]
    gate: Tensor = self.act_fn(self.gate_proj(x))
    down: Tensor = self.down_proj(gate.mul_(self.up_proj(x)))
    return down


def _layer(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    if not _applies(self, hidden_states):
        return type(self).forward(self, hidden_states, **kwargs)  # type: ignore[no-any-return]
    written, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
    # The input may be another's; the sum is nobody's yet.
    stream: Tensor = hidden_states + written
    return stream.add_(self.mlp(self.post_attention_layernorm(stream)))


def _attention(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: Any = None,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    if not _applies(self, hidden_states) or self.config._attn_implementation != "sdpa":
        given = (hidden_states, position_embeddings, attention_mask, past_key_values)
        return type(self).forward(self, *given, **kwargs)  # type: ignore[no-any-return]
    shape = (*hidden_states.shape[:-1], -1, self.head_dim)
    cos, sin = (each.unsqueeze(2) for each in position_embeddings)
    query = _rotated(self.q_proj(hidden_states).view(shape), cos, sin).transpose(1, 2)
    key = _rotated(self.k_proj(hidden_states).view(shape), cos, sin).transpose(1, 2)
    value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, self.layer_idx)
    output = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        is_causal=self.is_causal and attention_mask is None and query.shape[2] > 1,
        scale=self.scaling,
        enable_gqa=self.num_key_value_groups > 1,  # Without copies of the keys for each head.
    )
    return self.o_proj(output.transpose(1, 2).flatten(2)), None


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of (B, T, H, d), halves of d paired, as in Llama."""
    half = states.shape[-1] // 2
    rotated = states * cos
    rotated[..., :half].addcmul_(states[..., half:], sin[..., :half], value=-1)
    rotated[..., half:].addcmul_(states[..., :half], sin[..., half:])
    return rotated


_FORWARDS: dict[Callable[..., Any], tuple[type, ...]] = {
    _mlp: (llama.LlamaMLP,),
    _layer: (llama.LlamaDecoderLayer,),
    _attention: (llama.LlamaAttention, mistral.MistralAttention, qwen2.Qwen2Attention),
}
