"""Architectures to test with: tiny random models, and by hand where their blocks write."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from attacks.core.model import Model
from conftest import POCKET

HEAD = {"head_dim": 8}
WINDOW = {"sliding_window": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8}
ROUTED = {"n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}
GRANITE = {"residual_multiplier": 0.5, "embedding_multiplier": 1.5, "logits_scaling": 2.0}


class Family(NamedTuple):
    """An architecture, and by hand what its blocks are called and where they write."""

    model_type: str
    extra: dict[str, object]
    blocks: str = "model.layers"
    attention: str = "self_attn"
    mlp: str = "mlp"
    scale: float = 1.0
    """What it multiplies these writes by."""

    @property
    def all_experts(self) -> dict[str, object]:
        """What makes a mixture route every token to all of its four experts."""
        every = {"num_experts_per_tok": 4, "topk_group": 2}
        return {key: value for key, value in every.items() if key in self.extra}


NORMED = ("model.layers", "post_attention_layernorm", "post_feedforward_layernorm")
GPT2 = ("transformer.h", "attn", "mlp")
NEOX = ("gpt_neox.layers", "attention", "mlp")
FALCON = ("transformer.h", "self_attention", "mlp")
FAMILIES = {
    "llama": Family("llama", {}),
    "mistral": Family("mistral", WINDOW),
    "qwen2": Family("qwen2", {}),
    "qwen3": Family("qwen3", HEAD),
    "gemma": Family("gemma", HEAD),
    "gemma2": Family("gemma2", HEAD | WINDOW, *NORMED),
    "gemma3": Family("gemma3_text", HEAD | WINDOW, *NORMED),
    "phi": Family("phi", {}),
    "phi3": Family("phi3", WINDOW),
    "olmo2": Family("olmo2", {}, *NORMED),
    "olmo3": Family("olmo3", WINDOW, *NORMED),
    "olmoe": Family("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "mixtral": Family("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": Family("qwen3_moe", HEAD | EXPERTS),
    "deepseek": Family(
        "deepseek_v3", EXPERTS | LATENT | ROUTED | {"v_head_dim": 8, "num_key_value_heads": 4}
    ),
    "gpt-oss": Family(
        "gpt_oss", HEAD | WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "gpt2": Family("gpt2", {}, *GPT2),
    "gpt-j": Family("gptj", {"rotary_dim": 4}, *GPT2),
    "gpt-neo": Family(
        "gpt_neo",
        {"attention_types": [[["global", "local", "global"], 1]], "window_size": 8},
        *GPT2,
    ),
    "gpt-neox": Family("gpt_neox", {}, *NEOX),
    "gpt-neox-sequential": Family("gpt_neox", {"use_parallel_residual": False}, *NEOX),
    "falcon": Family("falcon", {}, *FALCON),
    "falcon-new": Family("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, *FALCON),
    "falcon-sequential": Family("falcon", {"parallel_attn": False, "alibi": True}, *FALCON),
    "stablelm": Family("stablelm", {}),
    "stablelm-parallel": Family("stablelm", {"use_parallel_residual": True}),
    "cohere": Family("cohere", {}),
    "cohere2": Family("cohere2", WINDOW),
    "glm": Family("glm", HEAD),
    "glm4": Family("glm4", HEAD, "model.layers", "post_self_attn_layernorm", "post_mlp_layernorm"),
    "granite": Family("granite", GRANITE, scale=0.5),
    "granite-moe": Family(
        "granitemoe",
        GRANITE | {"num_local_experts": 4, "num_experts_per_tok": 2},
        mlp="block_sparse_moe",
        scale=0.5,
    ),
    "starcoder2": Family("starcoder2", {}),
    "nemotron": Family("nemotron", {}),
    "bloom": Family("bloom", {}, "transformer.h", "self_attention.dense", "mlp.dense_4h_to_h"),
    "mpt": Family("mpt", {}, "transformer.blocks", "attn", "ffn.down_proj"),
}
#: Keep something else than keys and values from position to position.
RECURRENT = {
    "mamba": {"state_size": 4},
    "recurrent_gemma": {"attention_window_size": 8},
    "minimax": {},
}
_KINDS = {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}
_ADDED = {"vocab_size_per_layer_input": 768, "hidden_size_per_layer_input": 8, "laurel_rank": 4}
_STATE = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
#: Embed tokens once more in every block, or scale the embeddings of tokens outside their table.
NOT_ONLY_EMBEDDINGS = {
    "gemma3n_text": {
        **(HEAD | WINDOW | _KINDS | _ADDED),
        **{"num_kv_shared_layers": 1, "altup_num_inputs": 2, "intermediate_size": [64] * 3},
        "activation_sparsity_pattern": [0.0] * 3,
    },
    "falcon_h1": {**_STATE, "mamba_chunk_size": 8, "embedding_multiplier": 3.0},
}
#: Half of its blocks compute the mixture on one long row of positions.
FLAT = HEAD | {"num_local_experts": 2, "interleave_moe_layer_step": 2}


def random_model(model_type: str, dtype: torch.dtype = torch.float32, **extra: object) -> Model:
    """Three blocks of width 32 with weights, gains and biases large enough to matter."""
    tokenizer = AutoTokenizer.from_pretrained(POCKET / "pocket-llama")
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
    }
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **size | extra)
    config._experts_implementation = "eager"  # Nothing else has float64 and is seen by the counter.
    hf = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf.parameters():
            noise = torch.randn(parameter.shape, generator=rng)
            if parameter.ndim > 1:
                parameter.copy_(0.2 * noise)
            else:
                parameter.add_(0.1 * noise)
    return Model(hf.to(dtype), tokenizer, name=f"random-{model_type}")


@cache
def model_of(name: str) -> Model:
    return random_model(FAMILIES[name].model_type, **FAMILIES[name].extra)
