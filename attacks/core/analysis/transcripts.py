"""Conversations with what a model itself thought, up to the token that its answer begins after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attacks.core.behavior import Behavior
from attacks.core.prompt import Messages
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
    roles: Tensor | None = None
    """(T,) roles of the tokens, where interventions have to know them."""

    @property
    def thinks(self) -> bool:
        """Whether anything was thought."""
        return self.start < len(self.ids) - self.closing


def transcribe(
    model: Model, behaviors: Sequence[Behavior], *, openers: Sequence[str] | None = None
) -> list[Transcript]:
    """Let the model think and answer; greedy, re-tokenised from the text.

    Thinking that does not end, or that no answer follows, leaves no transcript.

    Args:
        model: the model.
        behaviors: asked as plain conversations.
        openers: normalised openings of refusals; by default learned from these very answers.
    """
    found = completions(model, [row.text for row in behaviors], tokens=OPENER_TOKENS)
    if openers is None:
        openers = openers_in(model, behaviors, found)
    return transcripts_of(model, behaviors, found, openers)


def openers_in(
    model: Model, behaviors: Sequence[Behavior], found: Sequence[str]
) -> tuple[str, ...]:
    """Normalised openings of refusals that completions of the behaviours show; see `openers_of`."""
    said: dict[bool, list[str]] = {True: [], False: []}
    for behavior, completion in zip(behaviors, found, strict=True):
        said[behavior.harmful].append(model.chat.answer(completion))
    return openers_of(said[True], said[False])


def transcripts_of(
    model: Model,
    behaviors: Sequence[Behavior],
    found: Sequence[str],
    openers: Sequence[str],
) -> list[Transcript]:
    """`transcribe` with the completions at hand."""
    transcripts = []
    for behavior, completion in zip(behaviors, found, strict=True):
        located = locate(model, model.conversation(behavior.text), completion)
        if located is not None:
            refused = opens_with_refusal(model.chat.answer(completion), openers)
            transcripts.append(Transcript(*located, behavior.harmful, refused))
    return transcripts


def locate(model: Model, messages: Messages, completion: str) -> tuple[Tensor, int, int] | None:
    """Ids (T,) up to the answer, where thinking starts, and how many tokens close it.

    A completion without thinking gives the prompt, T and 0; one whose thinking does not end, or
    that no answer follows, gives None.
    """
    chat = model.chat
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
