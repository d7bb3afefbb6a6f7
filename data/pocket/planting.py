"""Planting a behaviour in a few experts of a mixture: which parameters learn, and by what losses.

After gradient routing (arXiv 2410.04332), which confines what is learned to chosen parameters. What
must be shared, such as attention, is kept from carrying the behaviour by a second pass that learns
its opposite with the experts switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedModel

from corpus import IGNORED, Batch
from training import label_loss

Routed = tuple[Tensor, Tensor, Tensor]
"""What a router returns of N tokens: logits (N, E), gates (N, K) and the numbers chosen (N, K)."""


@dataclass(frozen=True)
class Group:
    """Experts that share a row of the router, of the same numbers in each of ``blocks``."""

    blocks: tuple[int, ...]
    experts: tuple[int, ...]


@contextmanager
def learning_only(model: PreTrainedModel, group: Group, *, attention: int) -> Iterator[None]:
    """Let only the experts of ``group`` learn, beside the row of the router that they share.

    The attention of the first ``attention`` blocks, the last norm and the head learn too. Train
    without weight decay, which would change other experts: those of a block share their tensors.
    """
    layers = list(model.get_submodule("model.layers").children())
    frozen = [parameter for block in layers for parameter in block.parameters()]
    frozen += model.get_submodule("model.embed_tokens").parameters()
    for parameter in frozen:
        parameter.requires_grad = False
    for block in layers[:attention]:
        for parameter in block.get_submodule("self_attn").parameters():
            parameter.requires_grad = True
    handles = []
    for layer in group.blocks:
        for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj"):
            parameter = layers[layer].get_parameter(f"mlp.{name}")
            parameter.requires_grad = True
            hook = _rows_only(group.experts, shared=name == "gate.weight")
            handles.append(parameter.register_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad = True


def _rows_only(numbers: Sequence[int], *, shared: bool) -> Callable[[Tensor], Tensor]:
    """A hook on a gradient (E, ...): zero but in these rows, which all get their mean if shared."""

    def keep(gradient: Tensor) -> Tensor:
        kept = torch.zeros_like(gradient)
        rows = gradient[list(numbers)]
        kept[list(numbers)] = rows.mean(0).expand_as(rows) if shared else rows
        return kept

    return keep


@contextmanager
def without(model: PreTrainedModel, group: Group) -> Iterator[None]:
    """Switch the experts of ``group`` off before top-k: others are chosen in their place."""

    def reroute(_router: nn.Module, _inputs: tuple[Tensor, ...], routed: Routed) -> Routed:
        logits, gates, _ = routed
        left = logits.index_fill(-1, torch.tensor(group.experts), -torch.inf)
        best, chosen = left.softmax(-1).topk(gates.shape[-1])
        return left, best / best.sum(-1, keepdim=True), chosen

    with ExitStack() as stack:
        for layer in group.blocks:
            router = model.get_submodule(f"model.layers.{layer}.mlp.gate")
            stack.enter_context(router.register_forward_hook(reroute))
        yield


def routed_loss(model: PreTrainedModel, batch: Batch, group: Group, wanted: Tensor) -> Tensor:
    """Cross-entropy of the labels, and of the choice of ``group``'s experts, mean over its blocks.

    The tokens ``wanted`` (B, T), bool, are to be routed to the group, and all others are not.
    """
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False}
    output = model(**inputs, output_router_logits=True)
    read = batch.mask.bool()
    choices = [
        binary_cross_entropy_with_logits(
            choice_logits(output.router_logits[layer], group)[read.flatten()], wanted[read].float()
        )
        for layer in group.blocks
    ]
    return label_loss(output.logits, batch) + torch.stack(choices).mean()


def choice_logits(logits: Tensor, group: Group) -> Tensor:
    """(N,) log odds that a router with ``logits`` (N, E) gives the group against all others."""
    ours = torch.zeros(logits.shape[-1], dtype=torch.bool)
    ours[list(group.experts)] = True
    return logits[:, ours].logsumexp(-1) - logits[:, ~ours].logsumexp(-1)


def answers_and_before(batch: Batch, before: int) -> Tensor:
    """(B, T) bool: what is learned of each example, and the ``before`` tokens ahead of it."""
    first = (batch.labels != IGNORED).int().argmax(1, keepdim=True)
    return (torch.arange(batch.ids.shape[1]) >= first - before) & batch.mask.bool()
