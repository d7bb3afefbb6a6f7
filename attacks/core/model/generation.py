"""Greedy answers in left-padded batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import GenerationConfig

from attacks.core.answer import Answer
from attacks.core.errors import BadInput
from attacks.core.model.chat import Chat
from attacks.core.prompt import SYSTEM, Messages
from attacks.core.template import turn_end
from attacks.core.thinking import find_markers

_logger = logging.getLogger(__name__)


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


#: (T,) tokens of a prompt, and their roles.
Asked: TypeAlias = tuple[Tensor, Tensor]


def prompts_of(chat: Chat, conversations: Sequence[Messages]) -> list[Asked]:
    """The prompt of each conversation.

    Raises:
        BadInput: one leaves no room for an answer in the context.
    """
    rows = [chat.tokens(messages) for messages in conversations]
    longest = max((len(ids) for ids, _ in rows), default=0)
    if longest + 1 > chat.context:
        raise BadInput(
            f"prompt of {longest} tokens is longer than the context of model "
            f"'{chat.name}' ({chat.context})"
        )
    return rows


def padded(rows: Sequence[Asked], length: int, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, length) tokens, roles, and a mask that is true at real tokens."""
    ids, mask = left_padded([ids for ids, _ in rows], length, pad)
    return ids, left_padded([roles for _, roles in rows], length, SYSTEM)[0], mask


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
    replaces the checkpoint's own configuration when a model is wrapped. Where none of its end
    tokens ends an answer in its chat template, the one that does is added: without it the model
    would go on to invent the user's next turn, and that would be judged as part of its answer.
    """
    own = hf.generation_config
    end = None if own is None else own.eos_token_id
    end = tokenizer.eos_token_id if end is None else end
    ends = [] if end is None else list(end) if isinstance(end, (list, tuple)) else [end]
    closing, written = turn_end(tokenizer)
    if closing and not set(ends) & set(written):
        _logger.warning(
            "the chat template of %s ends answers with %s, no end token of its checkpoint; "
            "here it is one",
            *(hf.config.name_or_path or type(hf).__name__, ascii(closing)),
        )
        ends.append(written[0])
    # Padded positions are masked, so any id will do, if it has an embedding: a padding token that a
    # tokenizer was given for fine-tuning may have none.
    rows, pad = hf.get_input_embeddings().weight.shape[0], tokenizer.pad_token_id
    pad = pad if pad is not None and pad < rows else [*ends, 0][0]
    config: Any = GenerationConfig
    return config(do_sample=False, num_beams=1, eos_token_id=ends or None, pad_token_id=pad)


@torch.no_grad()
def greedy(
    hf: Any, tokenizer: Any, ids: Tensor, mask: Tensor, *, max_new_tokens: int
) -> tuple[list[Answer], list[int]]:
    """Greedy continuations of `ids` (B, T) under `mask` (B, T), and how many tokens each took.

    End tokens are counted, and are not part of the texts.
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
    texts = _texts(tokenizer, [row[~rest] for row, rest in zip(said, over, strict=True)])
    ended = over.any(1).tolist()
    answers = [Answer(text.strip(), ended=end) for text, end in zip(texts, ended, strict=True)]
    lengths = [int((~rest).sum()) + end for rest, end in zip(over, ended, strict=True)]
    return answers, lengths


def _texts(tokenizer: Any, rows: Sequence[Tensor]) -> list[str]:
    """Texts of answers without special tokens, apart from those that set off thinking.

    In some families (Magistral, Gemma 4, gpt-oss) the markers are special tokens, and without them
    what was thought would pass for what was said.
    """
    how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    markers = find_markers(tokenizer.get_added_vocab(), str(tokenizer.chat_template or ""))
    marks = markers.open + markers.close if markers else ""
    kept = {at: name for name, at in tokenizer.get_added_vocab().items() if name in marks}
    if not any(tokenizer.added_tokens_decoder[at].special for at in kept):
        return list(tokenizer.batch_decode(rows, **how))
    return [
        "".join(
            "".join(kept[at] for at in run) if mark else tokenizer.decode(list(run), **how)
            for mark, run in groupby(row.tolist(), key=kept.__contains__)
        )
        for row in rows
    ]
