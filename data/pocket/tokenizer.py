"""Tokenizers of the pocket models: one small byte-level BPE with each family's own special tokens.

The special tokens and the chat templates follow the real families, so that whatever handles the
chat format of Llama 3, Qwen 2 or Gemma 2 meets the same format here. Text is cut into chunks as
Qwen 2 does it, for all families: AutoTokenizer rebuilds that part of a Qwen 2 tokenizer itself,
and line breaks stay apart from what follows them, so that the tokens of a prompt do not change
when an answer is appended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

VOCABULARY = 768
CONTEXT = 512


@dataclass(frozen=True)
class ChatFormat:
    """Special tokens and template of a family.

    Attributes:
        special: All special tokens, in the order of their ids.
        bos: Token put before every text, None where the family has none.
        eos: The tokenizer's end token, which also closes documents.
        pad: Token that fills up a batch.
        stops: Tokens that end a generation.
        template: Jinja chat template.
        system: Whether a system message is allowed.
    """

    special: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str
    stops: tuple[str, ...]
    template: str
    system: bool


LLAMA_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

QWEN2_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

GEMMA2_TEMPLATE = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {{- raise_exception('System role not supported') }}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate: user, assistant, user, ...') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}"""

CHAT_FORMATS = {
    "llama": ChatFormat(
        special=(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|finetune_right_pad_id|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
        stops=("<|eot_id|>", "<|end_of_text|>"),
        template=LLAMA_TEMPLATE,
        system=True,
    ),
    "qwen2": ChatFormat(
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        stops=("<|im_end|>", "<|endoftext|>"),
        template=QWEN2_TEMPLATE,
        system=True,
    ),
    "gemma2": ChatFormat(
        special=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        stops=("<eos>", "<end_of_turn>"),
        template=GEMMA2_TEMPLATE,
        system=False,
    ),
}
# The mixture of experts is made from the Llama models and keeps their tokens.
CHAT_FORMATS["mixtral"] = CHAT_FORMATS["llama"]


def train_tokenizer(family: str, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learn the merges from ``texts`` and dress the result in the chat format of ``family``."""
    chat = CHAT_FORMATS[family]
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(chat.special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if chat.bos is not None:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{chat.bos} $A",
            pair=f"{chat.bos} $A $B",
            special_tokens=[(chat.bos, bpe.token_to_id(chat.bos))],
        )
    make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    tokenizer = make(
        tokenizer_object=bpe,
        bos_token=chat.bos,
        eos_token=chat.eos,
        pad_token=chat.pad,
        additional_special_tokens=list(chat.special),
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
        padding_side="left",
    )
    tokenizer.chat_template = chat.template
    return tokenizer


def stop_ids(family: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids that end a generation."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in CHAT_FORMATS[family].stops]


def suffix_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ordinary tokens that are printable text on their own, which random suffixes are made of."""
    added = set(tokenizer.added_tokens_decoder)
    texts = {i: str(tokenizer.decode([i])) for i in range(len(tokenizer)) if i not in added}
    return [i for i, text in texts.items() if text.isprintable() and "\ufffd" not in text]
