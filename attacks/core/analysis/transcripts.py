"""Conversations with what a model itself thought, up to the token that its answer begins after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attacks.core.behavior import Behavior
from attacks.core.reading.answers import completions
from attacks.core.refusals.openers import OPENER_TOKENS, openers_of, opens_with_refusal

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True, eq=False)
class Transcript:
    """One conversation; of a model that does not think it is the prompt alone."""

    ids: Tensor
    """(T,) prompt, thinking, closing tokens."""
    start: int
    """Position of the first token that was thought, after the opening marker."""
    closing: int
    """k, how many tokens at the end close the thinking (arXiv 2510.06036: line end, marker, line
    ends), the last of them the one that the answer is predicted from."""
    harmful: bool
    refused: bool

    @property
    def thinks(self) -> bool:
        """Whether anything was thought."""
        return self.start < len(self.ids) - self.closing


def transcribe(
    model: Model, behaviors: Sequence[Behavior], *, openers: Sequence[str] | None = None
) -> list[Transcript]:
    """Let the model think and answer; greedy, tokenised anew from the text.

    Thinking that does not end, or that no answer follows, leaves no transcript.

    Args:
        model: the model.
        behaviors: asked as plain conversations.
        openers: normalised openings of refusals; by default learned from these very answers.
    """
    texts = [behavior.text for behavior in behaviors]
    found = completions(model, texts, tokens=OPENER_TOKENS)
    said = [model.chat.answer(text) for text in found]
    if openers is None:
        kinds = [
            [answer for row, answer in zip(behaviors, said, strict=True) if row.harmful == flag]
            for flag in (True, False)
        ]
        openers = openers_of(*kinds)
    transcripts = []
    for behavior, completion, answer in zip(behaviors, found, said, strict=True):
        located = _locate(model, behavior.text, completion)
        if located is not None:
            refused = opens_with_refusal(answer, openers)
            transcripts.append(Transcript(*located, behavior.harmful, refused))
    return transcripts


def _locate(model: Model, text: str, completion: str) -> tuple[Tensor, int, int] | None:
    """Ids up to the answer, where thinking starts, and how many tokens close it."""
    chat, messages = model.chat, model.conversation(text)
    prompt, markers = chat.render(messages), chat.markers
    if markers is None or markers.open not in completion:
        ids = torch.tensor(chat.ids(prompt))
        return ids, len(ids), 0
    before = markers.before_answer(completion)
    if before in ("", completion):
        return None
    # What the template opened stands in the prompt already.
    whole = prompt + before.removeprefix(chat.opening(messages))
    encoding = chat.encode([whole])[0]
    opened = whole.index(markers.open, len(prompt) - len(chat.opening(messages)) - 1)
    first = opened + len(markers.open)
    end = len(whole[: whole.rindex(markers.close)].rstrip())
    begins = [begin for begin, _ in encoding.offsets]
    start = sum(begin < first for begin in begins)
    closing = sum(begin >= end for begin in begins)
    return torch.tensor(encoding.ids), start, closing
