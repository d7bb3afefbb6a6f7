"""Models that read a request and an answer, and judge: probabilities of words or of labels.

What is judged was written by an attacked model and is hostile. No template sees it: the template is
written out around placeholders, and the texts are put in their place. What in them looks like a
part of the template (a control token, a marker, a label at the start of a line) is broken up by a
space, and the control tokens of the whole must be those of the template.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from attacks.core.errors import BadInput
from attacks.core.model.families import context_of
from attacks.core.model.generation import greedy, plain_generation
from attacks.core.model.loading import load_tokenizer, load_weights, revision_of
from attacks.core.template import DATE, frozen_template

_logger = logging.getLogger(__name__)

#: Stand for the request and the answer in the text of a template.
REQUEST, ANSWER = "\ue001q\ue002", "\ue001a\ue002"
_PLACES = re.compile("\ue001([qa])\ue002")
#: What templates mark their parts with.
_MARKERS = re.compile(r"<[^<>\n]{1,60}>|\[[^\[\]\n]{1,40}\]|^#{1,6} [^\n]{1,60}$", re.MULTILINE)
_ROUNDS = 8
#: Probability of all words together below which a judge means something else.
_LEAST = 0.01


class Template:
    """A text with places for a request and an answer, in tokens."""

    def __init__(
        self, text: str, tokenizer: Any, *, who: str, before: Any = (), after: Any = ()
    ) -> None:
        """Takes the text apart.

        Args:
            text: in which `REQUEST` and `ANSWER` stand where these go.
            tokenizer: of the model that reads it.
            who: begins the message of an error.
            before: ids of tokens that precede the text.
            after: ids of tokens that follow it.

        Raises:
            BadInput: the answer has no place in it.
        """
        # Text, place, text, place, ..., text.
        self._parts = _PLACES.split(text)
        if "a" not in self._parts[1::2]:
            raise BadInput(f"{who}: the template shows no answer")
        self._tokenizer = tokenizer
        self._around = (before, after)
        added = tokenizer.get_added_vocab()
        # A run of spaces may be a token of its own, and controls nothing.
        self._control = {at for name, at in added.items() if len(name.strip()) > 1}
        fixed = self._parts[0::2]
        marks = {name for name in added if len(name.strip()) > 1}
        marks |= {mark for part in fixed for mark in _MARKERS.findall(part)}
        labels = {part.rpartition("\n")[2].strip() for part in fixed[:-1]}
        self._breaks = [
            re.compile(f"({pattern})", re.IGNORECASE | re.MULTILINE)
            for pattern in (
                _any(marks),
                r"^[ \t]*" + _any(label for label in labels if re.search(r"\w", label)),
            )
        ]

    def fill(self, request: str, answer: str) -> list[int] | None:
        """Ids (T,) with the texts in place; None where these pass for control tokens even so."""
        texts = {"q": self.harmless(request), "a": self.harmless(answer)}
        ids = self._ids(texts)
        before, after = self._around
        return [*before, *ids, *after] if self._controls(ids) == self._wanted else None

    def harmless(self, text: str) -> str:
        """`text` with nothing in it that could be taken for the template's."""
        kept = "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)
        for _ in range(_ROUNDS):
            before = kept
            for pattern in self._breaks:
                kept = pattern.sub(_broken, kept)
            if kept == before:
                break
        return kept.strip()

    def endings(self, lead: str, words: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Ids of what the verdict begins with, `lead`, and of each word behind it.

        Told by the template's own end, so that they do not depend on what is judged.
        """
        tail = self._parts[-1]
        start = self._encode(tail)
        wholes = [self._encode(tail + lead + word) for word in words]
        shared = 0
        while all(len(ids) > shared + 1 for ids in wholes) and (
            len({ids[shared] for ids in wholes}) == 1
        ):
            shared += 1
        opened = wholes[0][:shared]
        if opened[: len(start)] != start:
            # The first word merges with the template's end: score it apart from that.
            return self._encode(lead) if lead else [], [self._encode(word) for word in words]
        return opened[len(start) :], [ids[shared:] for ids in wholes]

    def _ids(self, texts: Mapping[str, str]) -> list[int]:
        parts = [texts[part] if at % 2 else part for at, part in enumerate(self._parts)]
        return self._encode("".join(parts))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def _wanted(self) -> list[int]:
        return self._controls(self._ids({"q": "a", "a": "a"}))

    def _controls(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token in self._control]


def _any(texts: Any) -> str:
    """A pattern for any of the texts, long ones first; one that matches nothing where none is."""
    listed = sorted(set(texts), key=len, reverse=True)
    return f"(?:{'|'.join(map(re.escape, listed))})" if listed else r"(?!)"


def _broken(match: re.Match[str]) -> str:
    text = match[0]
    at = len(text) - len(text.lstrip()) + 1
    return f"{text[:at]} {text[at:]}"


class Reader:
    """A model that judges, with its tokenizer; weights are loaded when they are first needed."""

    def __init__(self, name: str, *, labels: bool, device: str, dtype: str) -> None:
        """Looks the model up.

        Args:
            name: folder or Hub id, the latter optionally with `@revision`.
            labels: a sequence classifier, and not a causal model.
            device: as `Model.load`.
            dtype: as `Model.load`.

        Raises:
            BadInput: as `Model.load`, as far as configuration and tokenizer tell.
        """
        self.name = name
        self._doubted = False
        self._how = {"device": device, "dtype": dtype}
        self._auto = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
        self._config, self.tokenizer = load_tokenizer(name)
        self.revision = revision_of(name, self._config)

    def chat_template(self, **options: Any) -> Template:
        """The model's own template around a user's turn and the assistant's answer to it.

        Raises:
            BadInput: there is none, or it refuses these turns or options.
        """
        return self._template([("user", REQUEST), ("assistant", ANSWER)], options)

    def text_around(self, text: str, *, who: str) -> Template:
        """A text that holds `REQUEST` and `ANSWER`, as the tokenizer by itself encodes it.

        So BERT's has its classification and separator tokens. What ends a text is there for
        classifiers only: a causal model is to go on.

        Raises:
            BadInput: the answer has no place in it; begins with `who`.
        """
        bare, whole = (
            self.tokenizer("a", add_special_tokens=add).input_ids for add in (False, True)
        )
        start = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
        before, after = whole[:start], whole[start + len(bare) :]
        if before and text.startswith(self.tokenizer.decode(before)):
            before = []
        after = [] if self._auto is AutoModelForCausalLM else after
        return Template(text, self.tokenizer, who=who, before=before, after=after)

    def chat_around(self, text: str) -> Template:
        """The chat template around a user's turn that holds `REQUEST` and `ANSWER`.

        Raises:
            BadInput: there is none, or it refuses the turn.
        """
        return self._template([("user", text)], {"add_generation_prompt": True})

    def chat(self, text: str) -> list[int]:
        """Ids of a user's turn, ready for the answer; `text` is nobody else's.

        Raises:
            BadInput: there is no chat template, or it refuses the turn.
        """
        shown = self._render([("user", text)], {"add_generation_prompt": True})
        return list(self.tokenizer(shown, add_special_tokens=False)["input_ids"])

    def _template(self, turns: Sequence[tuple[str, str]], options: Mapping[str, Any]) -> Template:
        shown = self._render(turns, options)
        return Template(shown, self.tokenizer, who=f"judge model '{self.name}'")

    def _render(self, turns: Sequence[tuple[str, str]], options: Mapping[str, Any]) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [{"role": role, "content": content} for role, content in turns],
                    chat_template=frozen_template(self.tokenizer.get_chat_template(), DATE),
                    tokenize=False,
                    **options,
                )
            )
        except Exception as error:  # a template is somebody else's program
            roles = ", ".join(role for role, _ in turns)
            reason = " ".join(str(error).split())[:200]
            raise BadInput(
                f"judge model '{self.name}': its chat template does not take the turns {roles} "
                f"({reason})"
            ) from error

    @torch.no_grad()
    def word_shares(
        self, ids: Sequence[int], lead: Sequence[int], words: Sequence[Sequence[int]]
    ) -> list[float] | None:
        """The probability of each word next, among these words; None where they do not fit.

        Args:
            ids: (T,) the prompt.
            lead: what the verdict begins with.
            words: ids of each word.
        """
        start = [*ids, *lead]
        longest = max(map(len, words))
        if len(start) + longest > context_of(self._config.get_text_config()):
            return None
        rows = torch.tensor(
            [[*start, *word, *[word[-1]] * (longest - len(word))] for word in words]
        )
        if longest == 1:
            # One pass tells them all apart.
            log_probs = self._log_probs(rows[:1, : len(start)])[0, -1]
            scores = log_probs[[word[0] for word in words]]
        else:
            read = self._log_probs(rows[:, :-1])[:, len(start) - 1 :]
            chosen = read.gather(2, rows[:, len(start) :, None].to(read.device))[..., 0]
            lengths = torch.tensor([[len(word)] for word in words], device=read.device)
            inside = torch.arange(longest, device=read.device) < lengths
            scores = (chosen * inside).sum(1)
        together = float(scores.logsumexp(0).exp())
        if together < _LEAST and not self._doubted:
            self._doubted = True
            _logger.warning(
                "judge model '%s' says none of the words that it is read by (together they have "
                "probability %.1g): it may answer in another format",
                *(self.name, together),
            )
        return [float(share) for share in scores.softmax(0)]

    @torch.no_grad()
    def label_shares(self, ids: Sequence[int]) -> list[float] | None:
        """What a sequence classifier gives each label; None where the text is too long.

        Probabilities, of a single label or of each of several that do not exclude one another its
        own; the values themselves where the model was trained to regress (`problem_type`).
        """
        # Position embeddings of RoBERTa begin at 2, so that its configuration names two too many.
        context = min(context_of(self._config.get_text_config()), self.tokenizer.model_max_length)
        if len(ids) > context:
            return None
        logits = (
            self._hf(input_ids=torch.tensor([list(ids)]).to(self._hf.device)).logits[0].double()
        )
        kind = getattr(self._config, "problem_type", None)
        if kind != "regression":
            apart = len(logits) == 1 or kind == "multi_label_classification"
            logits = logits.sigmoid() if apart else logits.softmax(0)
        return [float(share) for share in logits]

    def write(self, ids: Sequence[int], *, tokens: int) -> str | None:
        """The greedy continuation; None where there is no room for it."""
        if len(ids) + tokens > context_of(self._config.get_text_config()):
            return None
        rows = torch.tensor([list(ids)])
        (text,), _ = greedy(
            self._hf, self.tokenizer, rows, torch.ones_like(rows), max_new_tokens=tokens
        )
        return text

    def _log_probs(self, rows: Tensor) -> Tensor:
        logits: Tensor = self._hf(input_ids=rows.to(self._hf.device)).logits
        return logits.double().log_softmax(-1)

    @cached_property
    def _hf(self) -> Any:
        # The weights alone: their hash, which takes as long as reading them, is known.
        hf = load_weights(self.name, self._config, **self._how, auto=self._auto)
        hf = hf.eval().requires_grad_(False)
        if self._auto is AutoModelForCausalLM:
            hf.generation_config = plain_generation(hf, self.tokenizer)
        return hf
