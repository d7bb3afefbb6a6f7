"""Models for tests: the shipped pocket models, and tiny random ones of several architectures."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from attacks.core.behavior import Behavior
from attacks.core.model import Model
from attacks.core.search import Evaluator

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
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **_TINY, **extra)
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
            values.append(float(plain._trace_losses(moved)[0]))
        numeric = (values[0] - values[1]) / 2e-2
        analytic = float((gradient * direction).sum())
        assert numeric == pytest.approx(analytic, rel=1e-2, abs=tolerance)
