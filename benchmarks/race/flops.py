"""Operations that nanoGCG 0.3.0 executes on a Llama, counted from tokens.

Matrix products only, a multiply-add as two, as `attacks.core.model.meter` counts ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.race.shapes import Size


@dataclass(frozen=True)
class Lengths:
    """Tokens of a raced prompt."""

    before: int
    """Before the slots: template and request."""
    slots: int
    after: int
    target: int

    @property
    def new(self) -> int:
        """What is computed for each candidate: slots and all that follows."""
        return self.slots + self.after + self.target


def forward(size: Size, *, rows: int, new: int, past: int, head_rows: int) -> int:
    """One pass over `rows` sequences of `new` positions after `past` cached ones.

    Args:
        size: of the model.
        rows: sequences.
        new: positions computed in each.
        past: positions before them.
        head_rows: positions of each sequence whose logits are computed.
    """
    linear = 2 * size.layers * size.weights * new
    head = 2 * size.width * size.vocabulary * head_rows
    attention = 4 * size.layers * size.heads * size.head_width * new * (past + new)
    return rows * (linear + head + attention)


def gradient(size: Size, lengths: Lengths) -> int:
    """The pass for the gradient, forward and backward, with a one-hot matrix times all embeddings.

    The logits of all positions are computed. A backward pass costs as much as the forward pass for
    the matrices, since only inputs need gradients, and twice as much in attention.
    """
    new, past = lengths.new, lengths.before
    once = forward(size, rows=1, new=new, past=past, head_rows=new)
    attention = 4 * size.layers * size.heads * size.head_width * new * (past + new)
    one_hot = 2 * lengths.slots * size.vocabulary * size.width
    return 2 * (once + one_hot) + attention


def step(size: Size, lengths: Lengths, candidates: int) -> int:
    """One step that evaluates `candidates`, with its prefix cache, which it has by default."""
    new = lengths.new
    losses = forward(size, rows=candidates, new=new, past=lengths.before, head_rows=new)
    return gradient(size, lengths) + losses
