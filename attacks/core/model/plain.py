"""A checkpoint as any user of transformers has it, without hooks or caches of this suite.

Answers that a run has recorded are held against these. Only what makes an answer a function of the
conversation is set: greedy decoding (`generation.plain_generation`), and the date that chat
templates are told.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property

from attacks.core.errors import BadInput
from attacks.core.model.chat import Chat
from attacks.core.model.editing import edited
from attacks.core.model.families import Structure, context_of, structure_of
from attacks.core.model.generation import greedy, plain_generation
from attacks.core.model.loading import load_parts
from attacks.core.prompt import Messages
from attacks.core.template import DATE
from attacks.core.weights import WeightEdit


class PlainModel:
    """A causal chat model that only answers."""

    def __init__(
        self, name_or_path: str, *, name: str, device: str, dtype: str, date: str = DATE
    ) -> None:
        """Load a model; see `Model.load`.

        Raises:
            BadInput: as `Model.load`.
        """
        self._hf, self._tokenizer, self.revision = load_parts(
            name_or_path, device=device, dtype=dtype
        )
        self._hf.eval()
        self._hf.generation_config = plain_generation(self._hf, self._tokenizer)
        self._tokenizer.padding_side = "left"
        self._tokenizer.pad_token_id = self._hf.generation_config.pad_token_id
        rows = self._hf.get_input_embeddings().weight.shape[0]
        context = context_of(self._hf.config.get_text_config())
        self._chat = Chat(self._tokenizer, name, vocab_rows=rows, context=context, date=date)

    def answers(
        self,
        conversations: Sequence[Messages],
        *,
        max_new_tokens: int,
        edits: Sequence[WeightEdit] = (),
    ) -> list[str]:
        """Greedy answers to one batch, padded on the left; an assistant turn at the end goes on.

        Args:
            conversations: all of them, or none, end with an assistant turn.
            max_new_tokens: longest answer.
            edits: merged into the weights before, one after the other, and taken back after.

        Raises:
            BadInput: the template refuses a conversation, one leaves no room for an answer, or
                weights that cannot be edited.
        """
        for conversation in conversations:
            self._chat.try_out(conversation)
        opened = conversations[0][-1].role == "assistant"
        inputs = self._tokenizer.apply_chat_template(
            [[turn._asdict() for turn in conversation] for conversation in conversations],
            chat_template=self._chat.template,
            add_generation_prompt=not opened,
            continue_final_message=opened,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        )
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if ids.shape[1] + 1 > self._chat.context:
            raise BadInput(
                f"prompt of {ids.shape[1]} tokens is longer than the context of model "
                f"'{self._chat.name}' ({self._chat.context})"
            )
        with edited(self._hf, self._structure, edits) if edits else nullcontext():
            texts, _ = greedy(self._hf, self._tokenizer, ids, mask, max_new_tokens=max_new_tokens)
        openings = map(self._chat.opening, conversations)
        return [text.after(opening) for opening, text in zip(openings, texts, strict=True)]

    @cached_property
    def _structure(self) -> Structure:
        return structure_of(self._hf, self._hf.config.get_text_config().num_hidden_layers)
