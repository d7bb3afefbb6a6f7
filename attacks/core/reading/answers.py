"""The beginnings of a model's answers, however long it thinks before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attacks.core.thinking import ALLOWANCE
from attacks.core.weights import Change

if TYPE_CHECKING:
    from attacks.core.model import Model


def completions(
    model: Model, texts: Sequence[str], *, tokens: int, interventions: Sequence[Change] = ()
) -> list[str]:
    """Greedy completions of plain conversations, long enough for `tokens` tokens of answer.

    In batches of a fixed shape, so that an answer does not depend on the others; a single text is
    asked alone. A model that
    begins to think gets `thinking.ALLOWANCE` tokens more; `Chat.answer` tells what was said.
    """
    asked = [model.conversation(text) for text in texts]
    markers = model.chat.markers
    rows = 16 if len(asked) > 1 else 1
    for length in (tokens, tokens + ALLOWANCE):
        found = model.generate(
            asked, max_new_tokens=length, interventions=interventions, pad_to=32, batch_size=rows
        )
        if markers is None or not any(markers.open in text for text in found):
            break
    return found


def answers(
    model: Model, texts: Sequence[str], *, tokens: int, interventions: Sequence[Change] = ()
) -> list[str]:
    """What is said in `completions`, without thinking."""
    found = completions(model, texts, tokens=tokens, interventions=interventions)
    return [model.chat.answer(text) for text in found]
