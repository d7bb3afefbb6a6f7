"""Conversations, and a conversation in tokens with slots that an attack may fill."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput

#: Stands for one token slot inside a message; a private-use code point that no real text holds.
SLOT = "\ue000"

#: Roles of positions, as `Prompt.roles` and `Context.roles` hold them.
SYSTEM, INSTRUCTION, POST_INSTRUCTION, GENERATED = 0, 1, 2, 3
#: What a pass is told of an answer that it is given: GENERATED, and decoding steps count from here.
ANSWER = 4


def with_answer(roles: Tensor, answer: Tensor) -> Tensor:
    """(T + G,) the `roles` (T,) of a prompt, and of the `answer` (G,) that a pass is given."""
    return torch.cat([roles, torch.full_like(answer, ANSWER)])


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


Messages = tuple[Message, ...]
"""A conversation: its turns, the system message first where there is one."""


def conversation(text: str, *, system: str | None = None) -> Messages:
    """A single user turn, after an optional system message."""
    head = (Message("system", system),) if system else ()
    return (*head, Message("user", text))


def last_user_message(messages: Messages) -> str:
    """What the attacker sends, as a string."""
    return next((turn.content for turn in reversed(messages) if turn.role == "user"), "")


def opening_of(messages: Messages) -> str:
    """What the attacker puts into the model's mouth: an assistant turn at the end."""
    return messages[-1].content if messages[-1].role == "assistant" else ""


def suffixed(behavior: Behavior, slots: int, *, system: str | None = None) -> Messages:
    """The behaviour's conversation with `slots` slots right after its text.

    No space stands between them: tokens bring their own.

    Raises:
        BadInput: the text holds the reserved slot character.
    """
    if SLOT in behavior.text:
        raise BadInput(f"behaviour '{behavior.id}': its text holds the reserved character U+E000")
    return conversation(f"{behavior.text}{SLOT * slots}", system=system)


@dataclass(frozen=True, eq=False)
class Prompt:
    """A rendered conversation in tokens (T), with S slots anywhere in it and a target of G tokens.

    `Model.prompt` makes them; `ids` holds an initial filling that re-tokenises to itself.
    """

    messages: Messages
    """The conversation, `SLOT` standing for each slot."""
    ids: Tensor
    """(T,) int64: template, text, slots, generation header."""
    slots: Tensor
    """(S,) int64 positions of the slots, ascending."""
    target_ids: Tensor
    """(G,) int64: the tokens that a target loss wants next; may be empty."""
    roles: Tensor
    """(T,) int64: SYSTEM, INSTRUCTION or POST_INSTRUCTION."""
    pieces: tuple[str, ...] = ()
    """The rendered text between groups of adjacent slots; one more than there are groups."""
    group_sizes: tuple[int, ...] = ()
    """How many slots each group has."""
    trims: bool = False
    """Whether the chat template strips white space around message contents."""

    @property
    def n_slots(self) -> int:
        """S."""
        return len(self.slots)

    @property
    def slot_ids(self) -> Tensor:
        """(S,) the tokens now in the slots."""
        return self.ids[self.slots]

    def fill(self, candidates: Tensor) -> Tensor:
        """Whole conversations (B, T) with each row of `candidates` (B, S) in the slots."""
        assert candidates.ndim == 2 and candidates.shape[1] == self.n_slots
        ids = self.ids.to(candidates.device).expand(len(candidates), -1).clone()
        ids[:, self.slots.to(candidates.device)] = candidates
        return ids

    def with_slots(self, candidate: Tensor) -> Prompt:
        """This prompt with the tokens of `candidate` (S,) in the slots."""
        return replace(self, ids=self.fill(candidate.cpu().unsqueeze(0))[0])

    @property
    def sequence(self) -> Tensor:
        """(T + G,) conversation and target."""
        return torch.cat([self.ids, self.target_ids])

    def fill_text(self, groups: tuple[str, ...]) -> Messages:
        """The conversation as strings, with one string for each group of adjacent slots."""
        texts = iter(groups)
        filled = []
        for message in self.messages:
            parts = message.content.split(SLOT)
            content = parts[0]
            for index, part in enumerate(parts[1:]):
                # Adjacent slots leave empty parts between them; the group's first slot takes it.
                starts_group = index == 0 or parts[index] != ""
                content += (next(texts) if starts_group else "") + part
            filled.append(Message(message.role, content))
        return tuple(filled)

    def sends(self, groups: tuple[str, ...]) -> bool:
        """Whether the template, which may strip contents, sends this filling as it stands."""
        if not self.trims:
            return True
        turns = zip(self.messages, self.fill_text(groups), strict=True)
        return all(_strips(asked) == _strips(filled) for asked, filled in turns)


def _strips(message: Message) -> int:
    """How many characters stripping its content takes."""
    return len(message.content) - len(message.content.strip())
