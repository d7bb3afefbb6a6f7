"""Attention scores and patterns: eager attention that hands them out, for traces that read them.

Fused kernels never hold the pattern, so such a trace runs on an attention function of our own,
registered with transformers beside its own ones. Every other pass keeps the model's own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from attacks.core.errors import BadInput
from attacks.core.model.families import Structure, at_path

_NAME = "reroute_recorded"

#: Arguments that change the softmax in some families; plain attention knows none of them.
_FOREIGN = ("s_aux", "sinks", "position_bias")

#: Attention modules whose own eager function has been found to be plain attention.
_plain: WeakSet[nn.Module] = WeakSet()


class Recorder:
    """Scores (B, H, T, K) and patterns (B, H, T, K) of the attention modules that are wanted."""

    def __init__(self, family: str, wanted: Iterable[nn.Module]) -> None:
        """Keep what `wanted` modules compute; `family` is for messages."""
        self._family = family
        self._held: dict[nn.Module, dict[str, Tensor]] = {module: {} for module in wanted}
        self.fault: str | None = None
        """Why the values cannot be trusted."""

    def keep(self, module: nn.Module, scores: Tensor, pattern: Tensor) -> None:
        """Take what `module` computed, if it is wanted."""
        if module in self._held:
            self._held[module] = {"scores": scores, "pattern": pattern}

    def refuse(self, reason: str) -> None:
        """Say once the pass is over that this family is not supported."""
        self.fault = f"{self._family}: sites 'scores' and 'pattern' cannot be read ({reason})"

    def value(self, module: nn.Module, name: str) -> Tensor:
        """(B, T, H, K), as traces hold it.

        Raises:
            BadInput: the module did not go through the recorded attention function.
        """
        held = self._held[module]
        if name not in held:
            self.refuse("its attention does not use transformers' attention interface")
            raise BadInput(self.fault or "")
        return held[name].transpose(1, 2)


_recorder: ContextVar[Recorder | None] = ContextVar("_recorder", default=None)


@contextmanager
def recording(model: nn.Module, structure: Structure, layers: Iterable[int]) -> Iterator[Recorder]:
    """Run the model on recorded eager attention inside the block; always goes back.

    Args:
        model: the causal language model.
        structure: where its blocks are.
        layers: whose scores and patterns are kept.

    Raises:
        BadInput: this family's attention is not plain softmax attention over the keys, or does not
            go through transformers' attention interface.
    """
    wanted = [at_path(model, structure.attention_path(layer)) for layer in layers]
    recorder = Recorder(structure.family, wanted)
    configs = _configs(model, structure)
    before = [config._attn_implementation_internal for config in configs]
    token = _recorder.set(recorder)
    try:
        for config in configs:
            # Not the property, which also sets every sub-configuration, nor
            # `set_attn_implementation`, which walks over all modules: both would have to be undone.
            config._attn_implementation_internal = _NAME
        yield recorder
    except Exception as error:
        # An error inside a trace arrives wrapped by nnsight.
        if recorder.fault is None:
            raise
        raise BadInput(recorder.fault) from error
    finally:
        _recorder.reset(token)
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name
    if recorder.fault is not None:
        raise BadInput(recorder.fault)


def _configs(model: nn.Module, structure: Structure) -> list[Any]:
    """The configurations that attention modules, and whoever makes their masks, look at."""
    owner, _, _ = structure.blocks.rpartition(".")
    modules = [model, at_path(model, owner) if owner else model]
    for layer in range(len(at_path(model, structure.blocks))):
        if structure.projections[layer] is not None:
            modules.append(at_path(model, structure.attention_path(layer)))
    found = [getattr(module, "config", None) for module in modules]
    found.append(model.config.get_text_config())  # type: ignore[operator, union-attr]
    return list({id(config): config for config in found if config is not None}.values())


def _plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, T, H, d), scores and pattern (B, H, T, K).

    Grouped key and value heads are repeated; the softmax runs in float32, as everywhere in
    transformers.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    masked = scores if mask is None else scores + mask
    pattern = masked.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (pattern @ value).transpose(1, 2).contiguous(), scores, pattern


def _recorded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """What transformers calls; dropout is off in a frozen model."""
    result = _plain_attention(query, key, value, attention_mask, scaling, softcap)
    output, scores, pattern = result
    recorder = _recorder.get()
    if recorder is not None:
        if module not in _plain:
            own = {"scaling": scaling, "softcap": softcap, **kwargs}
            reason = _difference(module, (query, key, value, attention_mask), own, result)
            if reason is None:
                _plain.add(module)
            else:
                recorder.refuse(reason)
        recorder.keep(module, scores, pattern)
    return output, pattern


@torch.no_grad()
def _difference(
    module: nn.Module,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None],
    arguments: dict[str, Any],
    result: tuple[Tensor, Tensor, Tensor],
) -> str | None:
    """What the family's own eager attention does otherwise, on the very same arguments."""
    foreign = [name for name in _FOREIGN if arguments.get(name) is not None]
    if foreign or getattr(module, "sinks", None) is not None:
        return f"its attention has {', '.join(foreign) or 'sinks'}"
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if own is None:
        return "it has no eager attention function to compare with"
    given = {name: value for name, value in arguments.items() if value is not None}
    output, pattern = own(module, *tensors, **given)
    if pattern is None:
        return "its eager attention returns no pattern"
    exact = result[0].dtype in (torch.float32, torch.float64)
    error = (result[2].float() - pattern.float()).abs().sum(-1).max()
    off = (result[0].float() - output.float()).norm() / output.float().norm()
    if not max(float(error), float(off)) < (1e-3 if exact else 0.02):
        return "its own eager attention computes something else"
    return None


AttentionInterface.register(_NAME, _recorded_attention)
# Without a mask function of the same name, transformers would make no mask at all.
AttentionMaskInterface.register(_NAME, eager_mask)
