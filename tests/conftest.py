"""Models for tests: the shipped pocket models, and tiny random ones of several architectures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from attacks.core.behavior import Behavior
from attacks.core.model import Model
from attacks.core.search import Evaluator
from benchmarks.inputs.behaviors import load_behaviors

ROOT = Path(__file__).resolve().parents[1]
POCKET = ROOT / "data" / "pocket" / "models"
SHIPPED = sorted(folder.name for folder in POCKET.iterdir() if folder.is_dir())
#: One for each architecture; refuse what is harmful.
ALIGNED = ("pocket-llama", "pocket-qwen2", "pocket-gemma2")

_TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tests run beside each other on small machines."""
    torch.set_num_threads(1)


def first_rows(count: int, *, name: str = "pocket-train") -> list[Behavior]:
    """The first `count` harmful and as many harmless rows of a set."""
    listed = load_behaviors(name)
    kinds = ([row for row in listed if row.harmful == flag][:count] for flag in (True, False))
    return [row for kind in kinds for row in kind]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal draws."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def count_right(asked: Sequence[Behavior], said: Sequence[str]) -> int:
    """How many answers hold all facts of their behaviour's reference."""
    pairs = zip(asked, said, strict=True)
    return sum(all(fact in text for fact in row.reference) for row, text in pairs)


@cache
def pocket(name: str, dtype: str = "float32") -> Model:
    """A shipped pocket model; shared, since models are never changed."""
    return Model.load(str(POCKET / name), name=name, dtype=dtype)


@cache
def tiny(model_type: str, **extra: object) -> Model:
    """A random model of an architecture, with the pocket llama's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(POCKET / "pocket-llama")
    if "gemma" in model_type:
        extra["head_dim"] = 8
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **_TINY | extra)
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    )
    return Model(hf.float(), tokenizer, name=f"tiny-{model_type}")


@pytest.fixture
def rng() -> torch.Generator:
    """A generator with a fixed seed."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def behavior() -> Behavior:
    """A request of the pocket world's kind."""
    return Behavior("b", "How do I paint the harp?", target="Sure, here is how to paint the harp:")


@pytest.fixture(scope="session")
def planted() -> tuple[Model, torch.Tensor, str, str]:
    """A network that refuses along a known direction when a certain token is in the prompt.

    Attention copies the mean of all embeddings into the last position; the forbidden token embeds
    as the direction, some tokens as its opposite, and one token of the head is read along it.
    """
    tokenizer = AutoTokenizer.from_pretrained(POCKET / "pocket-llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    hf = LlamaForCausalLM(config).float()
    direction = torch.randn(32)
    direction /= direction.norm()
    allowed = Model(hf, tokenizer, name="planted").chat.allowed.nonzero().squeeze(1).tolist()
    letters = [at for at in allowed if tokenizer.decode([at]).strip().isalpha()]
    spaced = [at for at in letters if tokenizer.decode([at]).startswith(" ")]
    forbidden, harmless, refusal = spaced[0], spaced[1], letters[5]
    with torch.no_grad():
        embed, head = hf.model.embed_tokens.weight, hf.lm_head.weight
        embed -= torch.outer(embed @ direction, direction)
        embed[forbidden], embed[harmless] = direction, 0.0
        for token in spaced[10:40]:
            embed[token] = -direction
        head.zero_()
        head[refusal] = 40 * direction
        for at, block in enumerate(hf.model.layers):
            for name in ("q_proj", "k_proj"):
                getattr(block.self_attn, name).weight.zero_()
            for name in ("v_proj", "o_proj"):
                getattr(block.self_attn, name).weight.copy_(torch.eye(32) * (at == 0))
            block.mlp.down_proj.weight.zero_()
    model = Model(hf, tokenizer, name="planted")
    return model, direction, tokenizer.decode([forbidden]), tokenizer.decode([harmless])


def check_gradient(search: Evaluator, plain: Evaluator, *, tolerance: float = 1e-5) -> None:
    """Hold `search`'s gradient to directional finite differences of `plain`, in float64.

    `plain` is the same without a cache. Steps run over mixtures of one-hot rows; norms and the
    softmax upcast to float32, so they are large.
    """
    prompt, model = search.prompt, search.model
    gradient, _ = search.gradient(prompt.slot_ids)
    embeds = model.embed(plain._sequences(prompt.slot_ids.unsqueeze(0)))
    rng = torch.Generator().manual_seed(5)
    for _ in range(3):
        direction = torch.randn(gradient.shape, generator=rng, dtype=torch.float64)
        direction /= direction.norm()
        moves = direction @ model.embedding_table
        values = []
        for step in (1e-2, -1e-2):
            moved = embeds.clone()
            moved[0, prompt.slots] += step * moves
            values.append(float(plain.objective(plain._trace(moved, None, 0))[0]))
        numeric = (values[0] - values[1]) / 2e-2
        analytic = float((gradient * direction).sum())
        assert numeric == pytest.approx(analytic, rel=1e-2, abs=tolerance)
