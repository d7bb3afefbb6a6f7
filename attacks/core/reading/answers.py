"""The beginnings of a model's answers, however long it thinks before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from attacks.core.answer import Answer
from attacks.core.prompt import Messages
from attacks.core.thinking import ALLOWANCE
from attacks.core.weights import Change

if TYPE_CHECKING:
    from attacks.core.model import Model

#: What each model has said as it is, by conversation and tokens: the fits of several attacks ask
#: the same prompts.
_SAID: WeakKeyDictionary[Model, dict[tuple[Messages, int], str]] = WeakKeyDictionary()


def completions(
    model: Model, texts: Sequence[str], *, tokens: int, interventions: Sequence[Change] = ()
) -> list[str]:
    """Greedy completions of plain conversations, long enough for `tokens` tokens of answer.

    In batches of a fixed shape, so that an answer does not depend on the others. A model that
    begins to think gets `thinking.ALLOWANCE` tokens more; `Chat.answer` tells what was said.
    Without interventions several texts are asked once; a single one is asked alone and each time,
    since it may be a search's, whose operations are counted.
    """
    asked = [model.conversation(text) for text in texts]
    markers = model.chat.markers
    rows = 16 if len(asked) > 1 else 1
    said = _SAID.setdefault(model, {}) if rows > 1 and not interventions else {}
    for length in (tokens, tokens + ALLOWANCE):
        new = [each for each in dict.fromkeys(asked) if (each, length) not in said]
        told = model.generate(
            new, max_new_tokens=length, interventions=interventions, pad_to=32, batch_size=rows
        )
        said |= {(each, length): text for each, text in zip(new, told, strict=True)}
        found = [said[each, length] for each in asked]
        if markers is None or not any(markers.open in text for text in found):
            break
    return found


def answers(
    model: Model, texts: Sequence[str], *, tokens: int, interventions: Sequence[Change] = ()
) -> list[str]:
    """What is said in `completions`, without thinking; each an `Answer` where these are."""
    found = completions(model, texts, tokens=tokens, interventions=interventions)
    return [_said(model, text) for text in found]


def _said(model: Model, completion: str) -> str:
    said = model.chat.answer(completion)
    if said is completion or not isinstance(completion, Answer):
        return said
    return Answer(said, ended=completion.ended)
