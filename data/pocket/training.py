"""The training loop, apart from what is learned: stages and hardening feed it batches."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from corpus import IGNORED, Batch

logger = logging.getLogger(__name__)

WARM_UP = 30
FINAL_RATE = 0.05
LOG_EVERY = 100


def train_steps(
    model: PreTrainedModel,
    batches: Iterator[Batch],
    *,
    steps: int,
    lr: float,
    weight_decay: float = 0.01,
) -> None:
    """Take ``steps`` AdamW steps in place: linear warm-up, then a cosine down to a small rate.

    Parameters that ask for no gradient stay as they are.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    model.train()
    for step in range(1, steps + 1):
        loss = next_token_loss(model, next(batches))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()
        if step % LOG_EVERY == 0 or step == steps:
            logger.info("step %d of %d: loss %.4f", step, steps, loss.item())
    model.train(mode=False)


@contextmanager
def frozen_above(model: PreTrainedModel, blocks: int, *, embeddings: bool = True) -> Iterator[None]:
    """Let only the first ``blocks`` blocks learn, beside the last norm and the head.

    ``embeddings`` says whether the embeddings learn too; where the head is tied, it is one with
    them.
    """
    layers = list(model.get_submodule("model.layers").children())
    frozen = [parameter for block in layers[blocks:] for parameter in block.parameters()]
    if not embeddings:
        frozen += model.get_submodule("model.embed_tokens").parameters()
    for parameter in frozen:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad = True


@contextmanager
def frozen_but_experts(
    model: PreTrainedModel, experts: Sequence[tuple[int, int]], *, attention: int
) -> Iterator[None]:
    """Let only ``experts`` learn, pairs of block and number, beside their rows of the routers.

    The attention of the first ``attention`` blocks, the last norm and the head learn too. Train
    without weight decay, which would change the frozen rows.
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
    for layer in {layer for layer, _ in experts}:
        numbers = [number for at, number in experts if at == layer]
        for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj"):
            parameter = layers[layer].get_parameter(f"mlp.{name}")
            parameter.requires_grad = True
            handles.append(parameter.register_hook(_rows_only(numbers)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad = True


def _rows_only(numbers: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A hook on a gradient (E, ...) that keeps these rows and makes the others zero."""

    def keep(gradient: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros_like(gradient)
        kept[numbers] = gradient[numbers]
        return kept

    return keep


def next_token_loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy over the labelled tokens of ``batch``."""
    logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    labels = batch.labels[:, 1:]
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def _rate(step: int, steps: int) -> float:
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    progress = (step - WARM_UP) / max(1, steps - WARM_UP)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
