"""Counting the work: positions through the model, and floating-point operations."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

from torch import nn

from attacks.core.model.families import at_path


@dataclass(frozen=True)
class Work:
    """Positions and floating-point operations, forward and backward."""

    forward_tokens: int = 0
    backward_tokens: int = 0
    flops: int = 0

    def __sub__(self, other: Work) -> Work:
        return Work(
            self.forward_tokens - other.forward_tokens,
            self.backward_tokens - other.backward_tokens,
            self.flops - other.flops,
        )


_HEAD_WIDTHS = ("qk_head_dim", "v_head_dim")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


class Meter:
    """Counts matrix products, as `torch.utils.flop_counter` does; norms and softmax are left out.

    A multiply-add is two operations. Weights are frozen, so a backward pass computes gradients for
    inputs only: as much as the forward pass in linear layers, twice as much in attention.
    """

    def __init__(self, model: nn.Module, blocks: str, n_layers: int) -> None:
        config = model.config.get_text_config()  # type: ignore[operator, union-attr]
        heads = getattr(config, "num_attention_heads", None) or 0
        width = getattr(config, "head_dim", None) or config.hidden_size // max(1, heads)
        # Multi-head latent attention has queries and values of different widths.
        query, value = (getattr(config, key, None) or width for key in _HEAD_WIDTHS)
        self._attention = 2 * heads * (query + value)
        """Operations for each pair of a query and a key."""
        experts = next((n for key in _EXPERTS if (n := getattr(config, key, None))), None)
        active = getattr(config, "num_experts_per_tok", None)
        share = active / experts if experts and active else 1.0
        self._linear = [
            2 * int(_matrix_weights(at_path(model, f"{blocks}.{layer}"), share))
            for layer in range(n_layers)
        ]
        """Operations for each position, layer by layer."""
        head = model.get_output_embeddings()  # type: ignore[operator]
        self._head = 2 * head.weight.numel()
        self.forward_tokens = 0
        self.backward_tokens = 0
        self.flops = 0

    @property
    def per_position(self) -> int:
        """Operations that a position costs in all blocks, attention apart."""
        return sum(self._linear)

    def snapshot(self) -> Work:
        """The counts so far."""
        return Work(self.forward_tokens, self.backward_tokens, self.flops)

    def charge(self, work: Work) -> None:
        """Add what another model did for an attack on this one."""
        self.forward_tokens += work.forward_tokens
        self.backward_tokens += work.backward_tokens
        self.flops += work.flops

    def count(
        self,
        *,
        rows: int,
        new: int,
        past: int,
        layers: int,
        head_rows: int,
        backward: bool = False,
    ) -> None:
        """Add one pass: `rows` sequences of `new` positions after `past` cached ones.

        Args:
            rows: sequences in the batch.
            new: positions computed in each.
            past: positions before them, from a cache.
            layers: blocks that ran.
            head_rows: positions of each sequence whose logits were computed.
            backward: count the backward pass that follows it too.
        """
        linear = new * sum(self._linear[:layers]) + head_rows * self._head
        attention = layers * self._attention * new * (past + new)
        self.forward_tokens += rows * new
        self.flops += rows * (linear + attention)
        if backward:
            self.backward_tokens += rows * new
            self.flops += rows * (linear + 2 * attention)

    def count_answers(self, *, rows: int, prompt: int, new: int) -> None:
        """Add `rows` answers, the longest of `new` tokens, to prompts of `prompt` positions."""
        # The prompt gives the first token, and the last one is not read.
        for past in (0, *range(prompt, prompt + new - 1)):
            read = 1 if past else prompt
            self.count(rows=rows, new=read, past=past, layers=len(self._linear), head_rows=1)

    def fresh(self) -> Meter:
        """Another of the same model, at nothing."""
        other = copy(self)
        other.forward_tokens = other.backward_tokens = other.flops = 0
        return other

    def product(self, rows: int, inner: int, columns: int, *, backward: bool = False) -> None:
        """Add a product (rows, inner) x (inner, columns) outside the model.

        Args:
            rows: of the left factor.
            inner: the dimension summed over.
            columns: of the right factor.
            backward: count the gradient of the left factor too.
        """
        self.flops += 2 * rows * inner * columns * (2 if backward else 1)


def _matrix_weights(block: nn.Module, expert_share: float) -> float:
    """Entries of the block's matrices; experts count by the share that is active at a position."""
    total = 0.0
    for name, parameter in block.named_parameters():
        # The biases of experts are stacked, which makes them two-dimensional.
        if parameter.ndim >= 2 and not name.endswith("bias"):
            total += parameter.numel() * (expert_share if ".experts." in name else 1.0)
    return total
