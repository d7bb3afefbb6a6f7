"""Conversations to tokens and back: the chat template, the slots, and the round-trip filter."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor

from attacks.core.errors import BadInput
from attacks.core.prompt import (
    GENERATED,
    INSTRUCTION,
    POST_INSTRUCTION,
    SLOT,
    SYSTEM,
    Message,
    Messages,
    Prompt,
)
from attacks.core.template import DATE, MARK, asks_for_date, frozen_template
from attacks.core.thinking import Markers, find_markers

_SIGNS = string.printable[:95]
_DRAWS = 1000


class Chat:
    """A fast tokenizer with a chat template."""

    def __init__(
        self, tokenizer: Any, name: str, *, vocab_rows: int, context: int, date: str = DATE
    ) -> None:
        """Wrap a tokenizer.

        Args:
            tokenizer: a fast Hugging Face tokenizer.
            name: the model's name, for messages.
            vocab_rows: V, rows of the embedding matrix.
            context: the longest sequence that the model takes.
            date: YYYY-MM-DD, what templates that write today's date are told.

        Raises:
            BadInput: no chat template, or several without a default; no fast tokenizer (offsets are
                needed); no such date.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise BadInput(f"model '{name}' has no chat template; only chat models can be attacked")
        if not tokenizer.is_fast:
            raise BadInput(f"model '{name}' has no fast tokenizer (tokenizer.json)")
        # Those of a training run, which its `tokenizer.json` may keep.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.name = name
        self.vocab_rows = vocab_rows
        self.context = context
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:
            raise BadInput(f"model '{name}' has several chat templates and no default") from error
        self.template = frozen_template(template, date)
        #: The date that the template is told, or nothing where it asks for none.
        self.dated = date if asks_for_date(self.template) else ""

    @cached_property
    def markers(self) -> Markers | None:
        """What the model thinks between, where it knows such markers; it need not use them."""
        return find_markers(self.tokenizer.get_added_vocab(), self.template)

    def answer(self, completion: str) -> str:
        """What a completion says after thinking; all of it where the model knows no markers."""
        return self.markers.answer(completion) if self.markers else completion

    def try_out(self, messages: Messages) -> None:
        """Render a conversation to see whether that can be done, twice with the same text.

        Raises:
            BadInput: as `render`; a template that draws at random, leaves out what is said, or
                writes tokens that the model does not know.
        """
        if self.render(messages) != self.render(messages):
            raise BadInput(
                f"model '{self.name}': its chat template writes a different prompt each time; a "
                "prompt must be a function of the conversation"
            )
        marks = [f"{MARK}{at}{MARK}" for at in range(len(messages))]
        turns = list(zip(messages, marks, strict=True))
        shown = self.render(tuple(t._replace(content=f"{t.content} {mark}") for t, mark in turns))
        if lost := [turn.role for turn, mark in turns if mark not in shown]:
            raise BadInput(f"model '{self.name}': its chat template leaves out {lost[0]} turns")
        if beyond := [at for at in self.ids(shown) if at >= self.vocab_rows]:
            token = ascii(self.decode([beyond[:1]])[0])
            raise BadInput(
                f"model '{self.name}': its chat template writes {token}, which has no embedding"
            )

    def render(self, messages: Messages) -> str:
        """The conversation as text, ready for the answer; an assistant turn at the end is opened.

        Raises:
            BadInput: the template refuses the conversation (no system role, say).
        """
        opened = messages[-1].role == "assistant"
        turns = [message._asdict() for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                turns,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=not opened,
                continue_final_message=opened,
            )
        except Exception as error:  # a template is somebody else's program
            roles = ", ".join(message.role for message in messages)
            reason = " ".join(str(error).split())
            raise BadInput(
                f"model '{self.name}': its chat template refuses the roles {roles} ({reason})"
            ) from error
        return str(text)

    @cached_property
    def lead(self) -> str:
        """White space that the template writes between what asks for an answer and the answer.

        "Assistant:" asks, and "Assistant: Sure" is the answered turn: models answer " Sure" then,
        and a target or an answer that follows at once has another first token.
        """
        asked = (Message("user", "a"),)
        try:
            answered = self.render((*asked, Message("assistant", MARK)))
            before, after = self.render(asked), answered.partition(MARK)[0]
        except BadInput:
            return ""
        lead = after.removeprefix(before) if after.startswith(before) else ""
        return "" if lead.strip() else lead

    def opening(self, messages: Messages) -> str:
        """The marker of thinking that the template opens the answer with, or nothing."""
        if self.markers and self.markers.opened_by(self._around(messages)[1]):
            return self.markers.open + "\n"
        return ""

    def _around(self, messages: Messages) -> tuple[str, str]:
        """The rendered conversation before and after the last user message."""
        last = max(i for i, message in enumerate(messages) if message.role == "user")
        marked = (*messages[:last], Message("user", MARK), *messages[last + 1 :])
        before, _, after = self.render(marked).partition(MARK)
        return before, after

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """Encodings (ids, offsets) of rendered texts, which bring their own special tokens."""
        return list(self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False))

    def ids(self, text: str) -> list[int]:
        """Token ids of one rendered text."""
        return list(self.encode([text])[0].ids)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Texts of rows of ids, special tokens included."""
        batch = [list(row) for row in rows]
        return list(self.tokenizer.backend_tokenizer.decode_batch(batch, skip_special_tokens=False))

    @cached_property
    def _anchor(self) -> tuple[list[int], int]:
        """A token to decode fillings behind, and the length of its text.

        SentencePiece decoders drop a space at the very start, which is not there in a sentence.
        """
        ids = self.ids("a")[-1:]
        return ids, len(self.decode([ids])[0])

    def _fillings(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Texts of slot fillings, as they read in the middle of a conversation."""
        anchor, length = self._anchor
        return [text[length:] for text in self.decode([[*anchor, *row] for row in rows])]

    def tokens(self, messages: Messages) -> tuple[Tensor, Tensor]:
        """Ids (T,) and roles (T,) of a conversation."""
        text = self.render(messages)
        encoding = self.encode([text])[0]
        return torch.tensor(encoding.ids), self._roles(messages, text, encoding.offsets)

    def _roles(self, messages: Messages, text: str, offsets: list[tuple[int, int]]) -> Tensor:
        """SYSTEM before the last user message, INSTRUCTION in it, POST_INSTRUCTION after it.

        GENERATED in an assistant turn at the end: it stands where the model's own words would.
        """
        before, after = self._around(messages)
        start, end, answer = len(before), len(text) - len(after), len(text)
        if messages[-1].role == "assistant":
            opened = self.render((*messages[:-1], Message("assistant", MARK)))
            answer = len(opened.partition(MARK)[0])

        def role(begin: int, stop: int) -> int:
            if begin < start:
                return SYSTEM
            if stop <= end:
                return INSTRUCTION
            return GENERATED if begin >= answer else POST_INSTRUCTION

        return torch.tensor([role(begin, stop) for begin, stop in offsets])

    @cached_property
    def allowed(self) -> Tensor:
        """(V,) true for ids that a slot may hold: printable ASCII text, no special token."""
        tokenizer = self.tokenizer
        size = min(len(tokenizer), self.vocab_rows)
        banned = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        texts = self.decode([[index] for index in range(size)])
        allowed = torch.zeros(self.vocab_rows, dtype=torch.bool)
        for index, text in enumerate(texts):
            allowed[index] = bool(text) and text.isascii() and text.isprintable()
        allowed[[index for index in banned if index < self.vocab_rows]] = False
        if not allowed.any():
            raise BadInput(f"model '{self.name}': no token is printable ASCII text")
        return allowed

    def prompt(
        self, messages: Messages, *, target: str | None, rng: Generator, init: Tensor | None = None
    ) -> Prompt:
        """The conversation in tokens, its slots filled with tokens that re-tokenise to themselves.

        The template is rendered once with the slots in place and the slots are found by offset
        mapping. Fillings are drawn uniformly from the allowed ids until one survives.

        Args:
            messages: the conversation; `SLOT` in its contents stands for a slot.
            target: what the assistant should say next, or None.
            rng: draws the filling.
            init: (S,) the filling to use instead.

        Raises:
            BadInput: too long for the model, a target that is empty or merges with the template,
                or no filling that survives.
        """
        text = self.render(messages)
        pieces = tuple(re.split(f"{SLOT}+", text))
        sizes = tuple(len(run) for run in re.findall(f"{SLOT}+", text))
        if sum(sizes) != sum(message.content.count(SLOT) for message in messages):
            raise BadInput(f"model '{self.name}': its chat template drops or repeats the slots")
        choices, trims = self.allowed.nonzero().squeeze(1), self._trims(messages)
        for _ in range(_DRAWS if sizes and init is None else 1):
            drawn = init
            if drawn is None:
                drawn = choices[torch.randint(len(choices), (sum(sizes),), generator=rng)]
            found = self._locate(pieces, sizes, drawn)
            if found is None:
                continue
            ids, slots, full, offsets = found
            filled = Prompt(messages, ids, slots, ids[:0], ids, pieces, sizes, trims)
            row = self._groups(filled, drawn.unsqueeze(0))[0] if sizes else ()
            if filled.sends(row):
                break
        else:
            what = "no" if init is None else "the given"
            raise BadInput(
                f"model '{self.name}': {what} filling of the slots re-tokenises to itself"
            )
        target_ids = self._target(messages, full, ids, target)
        if len(ids) + len(target_ids) > self.context:
            raise BadInput(
                f"prompt of {len(ids) + len(target_ids)} tokens is longer than the context of "
                f"model '{self.name}' ({self.context})"
            )
        plain = filled.fill_text(row) if sizes else messages
        return replace(filled, target_ids=target_ids, roles=self._roles(plain, full, offsets))

    def _locate(
        self, pieces: tuple[str, ...], sizes: tuple[int, ...], drawn: Tensor
    ) -> tuple[Tensor, Tensor, str, list[tuple[int, int]]] | None:
        """Ids, slot positions, text and offsets with `drawn` (S,) filled in, if it survives."""
        text, spans, used = pieces[0], [], 0
        for size, piece in zip(sizes, pieces[1:], strict=True):
            group = self._fillings([drawn[used : used + size].tolist()])[0]
            spans.append((len(text), len(text) + len(group)))
            text += group + piece
            used += size
        encoding = self.encode([text])[0]
        slots = [
            index
            for index, (begin, end) in enumerate(encoding.offsets)
            if any(start <= begin and end <= stop and begin < end for start, stop in spans)
        ]
        ids = torch.tensor(encoding.ids)
        if len(slots) != len(drawn) or ids[slots].tolist() != drawn.tolist():
            return None
        return ids, torch.tensor(slots, dtype=torch.int64), text, list(encoding.offsets)

    def _target(self, messages: Messages, text: str, ids: Tensor, target: str | None) -> Tensor:
        if target is None:
            return torch.empty(0, dtype=torch.int64)
        opened = messages[-1].role == "assistant" or target[:1].isspace()
        joint = self.ids(text + ("" if opened else self.lead) + target)
        if joint[: len(ids)] != ids.tolist() or len(joint) == len(ids):
            raise BadInput(
                f"model '{self.name}': target {target!r} cannot be tokenised after the prompt "
                "(it is empty or merges with the chat template)"
            )
        return torch.tensor(joint[len(ids) :])

    def _trims(self, messages: Messages) -> bool:
        """Whether the template strips white space around contents; it must not change others."""
        padded = f" {MARK}{_SIGNS}{MARK} "
        turns = [t._replace(content=padded) if SLOT in t.content else t for t in messages]
        slotted = sum(turn.content == padded for turn in turns)
        shown = self.render(tuple(turns)) if slotted else ""
        if shown.count(padded.strip()) < slotted:
            raise BadInput(
                f"model '{self.name}': its chat template rewrites contents (quotes or case, say)"
            )
        return shown.count(padded) < slotted

    def _groups(self, prompt: Prompt, candidates: Tensor) -> list[tuple[str, ...]]:
        """For each candidate (B, S) the text of each group of adjacent slots."""
        columns, used = [], 0
        for size in prompt.group_sizes:
            columns.append(self._fillings(candidates[:, used : used + size].tolist()))
            used += size
        return list(zip(*columns, strict=True))

    def messages(self, prompt: Prompt, candidates: Tensor) -> list[Messages]:
        """The conversations as strings, one for each candidate (B, S)."""
        if prompt.n_slots == 0:
            return [prompt.messages] * len(candidates)
        return [prompt.fill_text(groups) for groups in self._groups(prompt, candidates)]

    def survives(self, prompt: Prompt, candidates: Tensor) -> Tensor:
        """(B,) true where the whole conversation, written out, re-tokenises to the same ids."""
        if prompt.n_slots == 0:
            return torch.ones(len(candidates), dtype=torch.bool)
        texts, whole = [], []
        for row in self._groups(prompt, candidates):
            parts = [prompt.pieces[0]]
            for group, piece in zip(row, prompt.pieces[1:], strict=True):
                parts += (group, piece)
            texts.append("".join(parts))
            whole.append(prompt.sends(row))
        wanted = prompt.fill(candidates).tolist()
        same = [
            encoding.ids == ids for encoding, ids in zip(self.encode(texts), wanted, strict=True)
        ]
        return torch.tensor(same) & torch.tensor(whole)
