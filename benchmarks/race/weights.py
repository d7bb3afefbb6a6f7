"""Folders to race on: random Llamas made on the spot, and copies that transformers 4 can read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Generator

from benchmarks.race.shapes import Size

_SPREAD = 0.02
_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|pad|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
_ROLES = ("user", "assistant", "system")
_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

#: Words, runs of signs, and line breaks, each with the space before it.
_CHUNKS = r" ?\p{L}+| ?[^\s\p{L}]+|\n+|\s+"


def make_random_llama(folder: Path, size: Size, *, dtype: torch.dtype, seed: int) -> None:
    """Write weights, configuration and tokenizer of an untrained chat model.

    Args:
        folder: created here; must not exist yet.
        size: of the model; embeddings and unembedding are not tied.
        dtype: of the weights.
        seed: of the weights and of the tokenizer's words.
    """
    folder.mkdir(parents=True)
    rng = Generator().manual_seed(seed)
    save_file(dict(_weights(size, dtype, rng)), folder / "model.safetensors", {"format": "pt"})
    _tokenizer(size.vocabulary, rng).save(str(folder / "tokenizer.json"))
    names = {"bos_token": _SPECIAL[0], "eos_token": _SPECIAL[5], "pad_token": _SPECIAL[2]}
    settings = {
        **names,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": list(_SPECIAL),
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "chat_template": _TEMPLATE,
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": size.layers,
        "hidden_size": size.width,
        "intermediate_size": size.hidden,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.key_value_heads,
        "head_dim": size.head_width,
        "vocab_size": size.vocabulary,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 5,
        "pad_token_id": 2,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    _write(folder / "tokenizer_config.json", settings)
    _write(folder / "config.json", config)


def _weights(size: Size, dtype: torch.dtype, rng: Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and values as a Llama of transformers has them."""

    def drawn(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn((rows, columns), generator=rng) * _SPREAD).to(dtype)

    width, queries = size.width, size.heads * size.head_width
    keys = size.key_value_heads * size.head_width
    yield "model.embed_tokens.weight", drawn(size.vocabulary, width)
    yield "lm_head.weight", drawn(size.vocabulary, width)
    yield "model.norm.weight", torch.ones(width, dtype=dtype)
    for layer in range(size.layers):
        block = f"model.layers.{layer}"
        yield f"{block}.self_attn.q_proj.weight", drawn(queries, width)
        yield f"{block}.self_attn.k_proj.weight", drawn(keys, width)
        yield f"{block}.self_attn.v_proj.weight", drawn(keys, width)
        yield f"{block}.self_attn.o_proj.weight", drawn(width, queries)
        yield f"{block}.mlp.gate_proj.weight", drawn(size.hidden, width)
        yield f"{block}.mlp.up_proj.weight", drawn(size.hidden, width)
        yield f"{block}.mlp.down_proj.weight", drawn(width, size.hidden)
        yield f"{block}.input_layernorm.weight", torch.ones(width, dtype=dtype)
        yield f"{block}.post_attention_layernorm.weight", torch.ones(width, dtype=dtype)


def _words(count: int, rng: Generator) -> list[str]:
    """Distinct made-up words of two to four syllables."""
    syllables = [a + b + c for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("", *"lnrs")]
    words: dict[str, None] = {}
    while len(words) < count:
        lengths = torch.randint(2, 5, (count,), generator=rng).tolist()
        picks = torch.randint(len(syllables), (count, 4), generator=rng).tolist()
        for length, row in zip(lengths, picks, strict=True):
            words["".join(syllables[pick] for pick in row[:length])] = None
    return list(words)[:count]


def _tokenizer(vocabulary: int, rng: Generator) -> Tokenizer:
    """A byte-level BPE of exactly `vocabulary` tokens, most of them whole words after a space."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CHUNKS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    words = _words(vocabulary, rng)
    # What comes first is repeated, so that merges of common words come before those of rare ones.
    texts = [f" {word}" * (1 + 20 * (place < vocabulary // 2)) for place, word in enumerate(words)]
    texts += [(role + "\n\n") * 1000 for role in _ROLES]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    assert bpe.get_vocab_size() == vocabulary, "too few words for so many tokens"
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{_SPECIAL[0]} $A", special_tokens=[(_SPECIAL[0], 0)]
    )
    return bpe


def copy_for_transformers_4(source: Path, folder: Path) -> None:
    """The model in `source`, as transformers 4.47 reads it; the weights are linked, not copied.

    Version 5 keeps the base of rotary embeddings in a table of its own, names the dtype otherwise,
    writes special tokens as a list, and the chat template into a file that version 4.47 ignores.
    """
    folder.mkdir(parents=True)
    (folder / "model.safetensors").symlink_to((source / "model.safetensors").resolve())
    shutil.copy(source / "tokenizer.json", folder)
    config = json.loads((source / "config.json").read_text("utf-8"))
    rotary = config.pop("rope_parameters", None) or {}
    if rotary.get("rope_type", "default") != "default":
        raise ValueError(f"rotary embeddings of type '{rotary['rope_type']}' are not raced")
    if "rope_theta" in rotary:
        config["rope_theta"] = rotary["rope_theta"]
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    _write(folder / "config.json", config)
    settings = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    special = settings.pop("extra_special_tokens", None)
    if special is not None:
        settings["additional_special_tokens"] = special
    template = source / "chat_template.jinja"
    if template.is_file():
        settings["chat_template"] = template.read_text("utf-8")
    _write(folder / "tokenizer_config.json", settings)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
