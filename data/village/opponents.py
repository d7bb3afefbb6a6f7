"""What the village model meets while it is hardened: strings around requests, and ablation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from attacks.core.model import Model
from train import Example
from train import example as conversation

#: Tokens of a string, and how many of them come before the request.
SLOTS = 10
FRONTS = (0, SLOTS // 2)


@dataclass(frozen=True)
class Row:
    """Token ids: what is said before the request and after it, the request, and the answer."""

    request: tuple[int, ...]
    answer: tuple[int, ...]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


@dataclass
class Attacked:
    """A harmful request and the string that does best against it so far."""

    row: Row
    best: Tensor
    """(SLOTS,)"""
    tried: Tensor
    """(SLOTS,) what it carries next."""
    front: int
    """How many of these come before the request."""
    loss: float = float("-inf")
    """Of its refusal with the best string, when it was seen last."""
    choices: Tensor | None = field(default=None, repr=False)
    """(SLOTS, BEST) tokens that should do better in each place of the best string."""


class Chat:
    """The template's ids around a request."""

    def __init__(self, model: Model) -> None:
        one, other = (conversation(model, text, "").ids[:-1] for text in ("Tell me", "Why not"))
        pairs = list(zip(one, other, strict=False))
        self.head = one[: next(at for at, (a, b) in enumerate(pairs) if a != b)]
        back = zip(reversed(one), reversed(other), strict=False)
        self.tail = one[len(one) - next(at for at, (a, b) in enumerate(back) if a != b) :]

    def row(self, example: Example) -> Row:
        """The parts of an example of ``train.py``."""
        at = len(example.ids) - example.answer
        return Row(example.ids[len(self.head) : at - len(self.tail)], example.ids[at:])

    def ids(self, row: Row) -> tuple[int, ...]:
        """All that comes after the head."""
        return (*row.before, *row.request, *row.after, *self.tail, *row.answer)


def placed(row: Row, string: Tensor, front: int) -> Row:
    """The request with the first ``front`` tokens of a string before it, and the rest after."""
    ids = string.tolist()
    return replace(row, before=tuple(ids[:front]), after=tuple(ids[front:]))


def usual_tokens(tokenizer: Any) -> Tensor:
    """Ids of the tokens that are printable ASCII."""
    texts = tokenizer.batch_decode([[at] for at in range(len(tokenizer))])
    special = set(tokenizer.all_special_ids)
    kept = [
        at
        for at, text in enumerate(texts)
        if at not in special and text.strip() and text.isascii() and text.isprintable()
    ]
    return torch.tensor(kept)


class Reversed(torch.autograd.Function):
    """The same value, with the gradient times ``-weight``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None


@contextmanager
def ablated(core: Any, basis: Tensor | None, harmful: int) -> Iterator[Tensor]:
    """Keep ``basis`` (k, D), orthonormal, out of what is written into the residual stream.

    The first ``harmful`` rows of a batch reverse its gradient, so that its descent raises their
    loss. Yields how much they weigh, 1 at first, which may be changed in place until the backward
    pass.
    """
    weight = torch.ones(())
    if basis is None:
        yield weight
        return
    against = Reversed.apply(basis, weight)

    def hook(module: nn.Module, inputs: object, written: Tensor) -> Tensor:
        parts = written[:harmful], written[harmful:]
        kept = [w - (w @ b.T) @ b for w, b in zip(parts, (against, basis), strict=True)]
        return torch.cat(kept)

    modules = [core.model.embed_tokens]
    for block in core.model.layers:
        modules += [block.self_attn.o_proj, block.mlp]
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield weight
    finally:
        for handle in handles:
            handle.remove()
