"""What is raced: three sizes of model, each with its requests and the numbers of the search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """Numbers of a Llama, as its `config.json` has them."""

    layers: int
    width: int
    hidden: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Size:
        """The numbers of a Llama's configuration."""
        return cls(
            config["num_hidden_layers"],
            config["hidden_size"],
            config["intermediate_size"],
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["head_dim"],
            config["vocab_size"],
        )

    @property
    def weights(self) -> int:
        """Entries of the matrices of one block."""
        attention = 2 * self.width * self.head_width * (self.heads + self.key_value_heads)
        return attention + 3 * self.width * self.hidden


@dataclass(frozen=True)
class Shape:
    """One kind of race."""

    name: str
    slots: int
    width: int
    """Candidates drawn in each step."""
    topk: int
    batch: int
    """Candidates in one forward pass, on both sides."""
    shipped: str = ""
    """The model raced on, whose answers can be judged; or none: random weights of `size`."""
    size: Size | None = None
    target: int = 0
    """Tokens of the target, for random weights."""
    dtype: str = "float32"
    needs_cuda: bool = False


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("pocket", slots=10, width=128, topk=64, batch=128, shipped="pocket-llama"),
        Shape(
            "58m",
            slots=20,
            width=64,
            topk=256,
            batch=64,
            size=Size(8, 512, 1536, 8, 4, 64, 32_000),
            target=15,
        ),
        Shape(
            "1b",
            slots=20,
            width=256,
            topk=256,
            batch=64,
            size=Size(12, 2048, 8192, 32, 8, 64, 128_000),
            target=15,
            dtype="bfloat16",
            needs_cuda=True,
        ),
    )
}
