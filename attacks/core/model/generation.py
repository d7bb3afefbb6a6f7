"""Greedy answers in left-padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from attacks.core.answer import Answer


def batches(
    lengths: Sequence[int], *, pad_to: int, batch_size: int
) -> Iterator[tuple[int, list[int]]]:
    """Group prompts for generation.

    With `pad_to` > 1 a batch's shape depends on its own prompts' lengths only: prompts are padded
    up to a multiple of `pad_to` and those of different padded lengths do not mix, so an answer does
    not change with who else shares the run.

    Yields:
        (padded length, indices of the prompts), at most `batch_size` each, in the given order.
    """
    groups: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault(-(-length // pad_to) * pad_to if pad_to > 1 else 0, []).append(index)
    for padded, members in groups.items():
        for start in range(0, len(members), batch_size):
            chunk = members[start : start + batch_size]
            yield padded or max(lengths[index] for index in chunk), chunk


def left_padded(rows: Sequence[Tensor], length: int, fill: int) -> tuple[Tensor, Tensor]:
    """(B, length) values and (B, length) mask, true at real tokens."""
    values = torch.full((len(rows), length), fill)
    mask = torch.zeros((len(rows), length), dtype=torch.bool)
    for index, row in enumerate(rows):
        values[index, length - len(row) :] = row
        mask[index, length - len(row) :] = True
    return values, mask


def plain_generation(hf: Any, tokenizer: Any) -> Any:
    """Greedy decoding with the checkpoint's end tokens and nothing else of its settings.

    `generate` fills whatever is unset from the checkpoint (a repetition penalty, say), so this
    replaces the checkpoint's own configuration when a model is wrapped.
    """
    own = hf.generation_config
    end = own.eos_token_id if own is not None and own.eos_token_id is not None else None
    end = tokenizer.eos_token_id if end is None else end
    pad = tokenizer.pad_token_id
    if pad is None:
        # Padded positions are masked, so any id will do.
        pad = end[0] if isinstance(end, list) else end or 0
    config: Any = GenerationConfig
    return config(do_sample=False, num_beams=1, eos_token_id=end, pad_token_id=pad)


@torch.no_grad()
def greedy(
    hf: Any, tokenizer: Any, ids: Tensor, mask: Tensor, *, max_new_tokens: int
) -> tuple[list[Answer], int]:
    """Greedy continuations of `ids` (B, T) under `mask` (B, T), and the length of the longest.

    End tokens are not part of the texts.
    """
    device = hf.get_input_embeddings().weight.device
    output = hf.generate(
        input_ids=ids.to(device),
        attention_mask=mask.long().to(device),
        max_new_tokens=max_new_tokens,
    )
    said = output[:, ids.shape[1] :].cpu()
    stop = hf.generation_config.eos_token_id
    ends = torch.tensor([] if stop is None else stop, dtype=said.dtype).reshape(-1)
    over = torch.isin(said, ends).cumsum(1) > 0
    # Cut here: an end token, and what fills up a row that has ended, may be no special tokens.
    texts = tokenizer.batch_decode(
        [row[~rest] for row, rest in zip(said, over, strict=True)],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    ended = over.any(1).tolist()
    answers = [Answer(text.strip(), ended=end) for text, end in zip(texts, ended, strict=True)]
    return answers, said.shape[1]
