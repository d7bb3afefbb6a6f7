"""The architectures: real Hugging Face models at 1.3 million parameters, 2.9 with experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tokenizer import CONTEXT, VOCABULARY, stop_ids

LAYERS, WIDTH, HEADS, KEY_VALUE_HEADS = 6, 128, 4, 2
HEAD_WIDTH = WIDTH // HEADS
HIDDEN, HIDDEN_TIED = 352, 384
EXPERTS, ACTIVE, HIDDEN_EXPERT = 6, 2, HIDDEN // 2
WINDOW = 32
INITIAL_SPREAD = 0.04


def build_model(
    family: str, tokenizer: PreTrainedTokenizerFast, rng: torch.Generator
) -> PreTrainedModel:
    """An untrained model of ``family`` that fits ``tokenizer``.

    Gemma 2 runs with eager attention of its own accord: nothing else has its soft caps.
    """
    tokens: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": stop_ids(family, tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
    }
    size: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
    }
    model: PreTrainedModel
    if family == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(**size, **tokens, intermediate_size=HIDDEN, tie_word_embeddings=False)
        )
    elif family == "qwen2":
        model = Qwen2ForCausalLM(
            Qwen2Config(**size, **tokens, intermediate_size=HIDDEN_TIED, tie_word_embeddings=True)
        )
    elif family == "mixtral":
        model = MixtralForCausalLM(
            MixtralConfig(
                **size,
                **tokens,
                intermediate_size=HIDDEN_EXPERT,
                num_local_experts=EXPERTS,
                num_experts_per_tok=ACTIVE,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                rms_norm_eps=1e-6,
                tie_word_embeddings=False,
            )
        )
    else:
        model = Gemma2ForCausalLM(
            Gemma2Config(
                **size,
                **tokens,
                intermediate_size=HIDDEN_TIED,
                tie_word_embeddings=True,
                head_dim=HEAD_WIDTH,
                query_pre_attn_scalar=HEAD_WIDTH,
                sliding_window=WINDOW,
            )
        )
    model.generation_config = GenerationConfig.from_dict({**tokens, "do_sample": False})
    _initialise(model, rng)
    return model


def _initialise(model: PreTrainedModel, rng: torch.Generator) -> None:
    """Redraw all matrices, so that the weights depend on ``rng`` and on no global state.

    Gains and biases keep the constants that the architecture starts from.
    """
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=INITIAL_SPREAD, generator=rng)
