"""The training loop, apart from what is learned: stages and hardening feed it batches."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
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
    """Learn the next tokens of ``batches``, one a step, in place: see ``descend``."""
    losses = (next_token_loss(model, batch) for batch in batches)
    descend(model, losses, steps=steps, lr=lr, weight_decay=weight_decay)


def descend(
    model: PreTrainedModel,
    losses: Iterator[Tensor],
    *,
    steps: int,
    lr: float,
    weight_decay: float = 0.01,
) -> None:
    """Take ``steps`` AdamW steps in place: linear warm-up, then a cosine down to a small rate.

    Parameters that ask for no gradient stay as they are. ``losses`` yields a scalar for each step,
    computed from the model as it then is.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    model.train()
    for step in range(1, steps + 1):
        loss = next(losses)
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


def next_token_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Mean cross-entropy over the labelled tokens of ``batch``."""
    logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    return label_loss(logits, batch)


def label_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of the next-token ``logits`` (B, T, V) at the labels of ``batch``."""
    labels = batch.labels[:, 1:]
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def _rate(step: int, steps: int) -> float:
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    progress = (step - WARM_UP) / max(1, steps - WARM_UP)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
