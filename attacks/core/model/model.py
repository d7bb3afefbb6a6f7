"""A causal chat model: embed, trace with early stop and prefix cache, generate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any

import torch
from nnsight import NNsight
from torch import Generator, Tensor
from transformers import DynamicCache

from attacks.core.answer import Answer
from attacks.core.model import generation, tracing
from attacks.core.model.cache import Prefix
from attacks.core.model.chat import Chat
from attacks.core.model.checks import Checks
from attacks.core.model.companions import Companions
from attacks.core.model.device import OnDevice
from attacks.core.model.editing import edited
from attacks.core.model.families import context_of, structure_of
from attacks.core.model.hooks import by_site, intervening
from attacks.core.model.lean import made_lean
from attacks.core.model.loading import load_parts, load_tokenizer
from attacks.core.model.meter import Meter
from attacks.core.prompt import Messages, Prompt, conversation
from attacks.core.shields import Shield
from attacks.core.sites import Site, Trace
from attacks.core.template import DATE
from attacks.core.weights import Change, WeightEdit


class Model(OnDevice):
    """A frozen model with its chat template, and the work done with it so far (`meter`)."""

    shields: tuple[Shield, ...] = ()
    """What answers have to pass; see `ShieldedModel`."""

    def __init__(
        self,
        hf: Any,
        tokenizer: Any,
        *,
        name: str,
        revision: str = "",
        system: str | None = None,
        date: str = DATE,
    ) -> None:
        """Wrap a loaded Hugging Face causal language model, which is frozen; see `load`."""
        config = hf.config.get_text_config()
        self.hf = hf.eval().requires_grad_(False)
        self.hf.generation_config = generation.plain_generation(hf, tokenizer)
        self.name = name
        self.system = system
        self.n_layers: int = config.num_hidden_layers
        self.width: int = config.hidden_size
        self.structure = structure_of(hf, self.n_layers)
        rows = hf.get_input_embeddings().weight.shape[0]
        self.chat = Chat(tokenizer, name, vocab_rows=rows, context=context_of(config), date=date)
        dated = f"dated {self.chat.dated}" if self.chat.dated else ""
        self.revision = " ".join(part for part in (revision, dated) if part)
        self.meter = Meter(hf, self.structure.blocks, self.n_layers)
        self._envoy = NNsight(made_lean(hf))
        self.companions = Companions(self.hf, partial(Model.load, date=date))
        self.checks = Checks(self._envoy, self.structure, self.chat, self.n_layers)
        self._changes: tuple[Change, ...] = ()
        self._tables: list[tuple[Tensor, Tensor]] = []
        self._edits: list[WeightEdit] = []
        self.chat.try_out(conversation("a", system=system))

    @classmethod
    def load(
        cls,
        name_or_path: str,
        *,
        name: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        device_map: str | Mapping[str, Any] | None = None,
        system: str | None = None,
        date: str = DATE,
    ) -> Model:
        """Load a Hugging Face causal chat model: safetensors or GGUF, and never remote code.

        Args:
            name_or_path: folder, Hub id, GGUF file or PEFT adapter; see `sources.find_source`.
            name: what records call it, by default `name_or_path`.
            device: a torch device; "auto" is CUDA where present.
            dtype: float32, bfloat16, float16, float64; "auto" is float32 on the CPU, else its own.
            device_map: for one model on several devices, accelerate's "auto" or another map.
            system: system prompt of every conversation.
            date: YYYY-MM-DD, what chat templates that write today's date are told.

        Raises:
            BadInput: not found, gated, pickled, no chat template, unknown device, dtype or date, a
                package that is missing, no system role when `system` is given, `Checks.embeddings`.
        """
        hf, words, known = load_parts(name_or_path, device, dtype, device_map)
        return cls(hf, words, name=name or name_or_path, revision=known, system=system, date=date)

    @staticmethod
    def check(name_or_path: str, *, name: str, system: str | None = None, date: str = DATE) -> None:
        """Find out, without the weights, whether a model can be loaded and attacked.

        Raises:
            BadInput: as `load`, as far as configuration, tokenizer and chat template tell.
        """
        config, tokenizer = load_tokenizer(name_or_path)
        text = config.get_text_config()
        context = context_of(text)
        chat = Chat(tokenizer, name, vocab_rows=text.vocab_size, context=context, date=date)
        chat.try_out(conversation("a", system=system))

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return torch.device(self.hf.get_input_embeddings().weight.device)

    @property
    def dtype(self) -> str:
        """Of the weights, such as "float32"."""
        return str(self.hf.dtype).removeprefix("torch.")

    def changed(self, interventions: Sequence[Change]) -> Model:
        """This model with `interventions` active in every pass and answer, before any others.

        A light view: all else is shared. An attack that is given it does not know of the change.
        """
        if not interventions:
            return self
        view = copy(self)
        view._changes = (*self._changes, *interventions)
        return view

    # Conversations ---------------------------------------------------------------------------

    def conversation(self, text: str) -> Messages:
        """A single user turn, after the system prompt if there is one."""
        return conversation(text, system=self.system)

    def prompt(
        self,
        messages: Messages,
        *,
        rng: Generator,
        target: str | None = None,
        init: Tensor | None = None,
    ) -> Prompt:
        """`Chat.prompt`."""
        return self.chat.prompt(messages, target=target, rng=rng, init=init)

    def plain(self, text: str, *, target: str | None = None) -> Prompt:
        """The conversation that just asks `text`, without slots."""
        return self.chat.prompt(self.conversation(text), target=target, rng=Generator())

    # Embeddings ------------------------------------------------------------------------------

    def embed(self, ids: Tensor) -> Tensor:
        """(..., D) through the embedding module, which scales in some families (Gemma)."""
        embedded: Tensor = self.hf.get_input_embeddings()(ids.to(self.device))
        return embedded

    @property
    def embedding_table(self) -> Tensor:
        """(V, D) what `embed` gives for each id; kept while the weights are the same."""
        module = self.hf.get_input_embeddings()
        weight: Tensor = module.weight
        if type(module) is torch.nn.Embedding:
            return weight.detach()
        if not self._tables or self._tables[0][0] is not weight:
            self._tables[:] = [(weight, self.embed(torch.arange(weight.shape[0])).detach())]
        return self._tables[0][1]

    # Forward passes --------------------------------------------------------------------------

    @contextmanager
    def editing(self, changes: Sequence[Change] = ()) -> Iterator[None]:
        """Apply the weight edits of this model and of `changes` inside the block, and undo them.

        Every pass enters this for its own; an edit that is in place is not applied twice. So a loop
        of passes enters it once, around the whole, to save the work.

        Raises:
            BadInput: see `editing.edited`.
        """
        edits = [edit for edit in (*self._changes, *changes) if isinstance(edit, WeightEdit)]
        fresh = [edit for edit in edits if not any(edit is held for held in self._edits)]
        with edited(self.hf, self.structure, fresh):
            self._edits += fresh
            try:
                yield
            finally:
                del self._edits[len(self._edits) - len(fresh) :]

    def prefix(
        self, ids: Tensor, *, interventions: Sequence[Change] = (), roles: Tensor | None = None
    ) -> Prefix:
        """Keys and values of the positions `ids` (P,), for sequences that begin with them.

        `interventions` and `roles` (P,) as in `trace`.

        Raises:
            BadInput: this family carries something else from position to position.
        """
        last = Site(self.n_layers - 1, "resid_post", (len(ids) - 1,))
        with torch.no_grad():
            rows = ids.unsqueeze(0)
            return self.extended(rows, [last], interventions=interventions, roles=roles)[1]

    def trace(
        self,
        inputs: Tensor,
        reads: Sequence[Site],
        *,
        prefix: Prefix | None = None,
        interventions: Sequence[Change] = (),
        roles: Tensor | None = None,
    ) -> Trace:
        """Activations at `reads`; the forward pass stops after the deepest of them.

        Gradients flow to `inputs` when they are embeddings that require them.

        Args:
            inputs: ids (B, T) or embeddings (B, T, D) of what follows the prefix; with weight edits
                make embeddings inside `editing`.
            reads: sites with absolute positions, counted from the start of the prefix.
            prefix: keys and values of earlier positions, shared by all rows.
            interventions: applied at each site in order before it is read; weight edits always.
            roles: (T,) or (B, T) roles of the positions of `inputs`, for interventions.

        Returns:
            {site: (B, P, D)}, or (B, P, V) for logits, in the order of each site's positions.
        """
        cache = prefix.expanded(len(inputs), kept=False) if prefix else None
        return self._trace(inputs, reads, cache, interventions, roles)

    def extended(
        self,
        inputs: Tensor,
        reads: Sequence[Site],
        *,
        prefix: Prefix | None = None,
        interventions: Sequence[Change] = (),
        roles: Tensor | None = None,
    ) -> tuple[Trace, Prefix]:
        """`trace`, and each sequence's keys and values up to the end of `inputs`.

        Raises:
            BadInput: this family carries something else from position to position.
        """
        self.checks.prefix()
        cache = prefix.expanded(len(inputs)) if prefix else DynamicCache()
        return self._trace(inputs, reads, cache, interventions, roles), Prefix.of(cache)

    def _trace(
        self,
        inputs: Tensor,
        reads: Sequence[Site],
        cache: DynamicCache | None,
        interventions: Sequence[Change],
        roles: Tensor | None,
    ) -> Trace:
        """A pass on this model as it has been changed; it extends the cache."""
        with self.editing(interventions):
            embeds = inputs if inputs.is_floating_point() else self.embed(inputs)
            rows, new = embeds.shape[:2]
            past = cache.get_seq_length() if cache else 0
            changes = (*self._changes, *interventions)
            plan = tracing.plan(reads, changes, past=past, n_layers=self.n_layers)
            self.checks.writes(plan.places)
            if embeds.requires_grad:
                self.checks.gradients()
            told = None if roles is None else roles.to(self.device).expand(rows, new)
            work = tracing.Pass(embeds, cache, past, changes, told)
            trace = tracing.run(self._envoy, self.structure, work, plan)
        self.meter.count(
            rows=rows,
            new=new,
            past=past,
            layers=plan.layers,
            head_rows=len(plan.head),
            backward=embeds.requires_grad,
        )
        # Where blocks lie on several devices, what they gave is read on one.
        return {site: value.to(self.device) for site, value in trace.items()}

    def gradient(self, loss: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
        """`loss` () of `at`, and its gradient of the shape of `at`; nothing of a graph is left."""
        leaf = at.detach().requires_grad_()
        with torch.enable_grad():
            found = loss(leaf)
            (gradient,) = torch.autograd.grad(found, leaf)
        return found.detach(), gradient

    # Answers ---------------------------------------------------------------------------------

    def generate(
        self,
        conversations: Sequence[Messages],
        *,
        max_new_tokens: int,
        interventions: Sequence[Change] = (),
        pad_to: int = 1,
        batch_size: int | None = None,
    ) -> list[str]:
        """Greedy answers, in the order of `conversations`; each is an `Answer`.

        Thinking is part of an answer, its markers included, also one that the template has opened.

        Args:
            conversations: each is rendered and re-tokenised, as a user's would be.
            max_new_tokens: longest answer, thinking included.
            interventions: active throughout, after those of this model.
            pad_to: with a `batch_size`, gives batches of a fixed shape (see `generation.batches`).
            batch_size: rows of a batch, by default all; with `pad_to` > 1 one is filled up.

        Raises:
            BadInput: a conversation that leaves no room for an answer in the context, or prompts of
                several lengths in a family that reads their padding.
        """
        tokens = generation.prompts_of(self.chat, conversations)
        lengths = [len(ids) for ids, _ in tokens]
        answers = [""] * len(tokens)
        size = batch_size or len(tokens)
        for length, members in generation.batches(lengths, pad_to=pad_to, batch_size=size):
            filled = members + [members[-1]] * (size - len(members) if pad_to > 1 else 0)
            rows = [tokens[index] for index in filled]
            texts, new = self._answered(rows, length, interventions, max_new_tokens)
            self.meter.count_answers(rows=len(rows), prompt=length, new=max(new))
            for index, text in zip(members, texts, strict=False):
                answers[index] = text.after(self.chat.opening(conversations[index]))
        return answers

    def _answered(
        self, rows: Sequence[generation.Asked], length: int, more: Sequence[Change], most: int
    ) -> tuple[list[Answer], list[int]]:
        """Answers of `most` tokens to prompts padded to `length`, and how many tokens each took."""
        changes = (*self._changes, *more)
        self.checks.writes(by_site(changes))
        ids, roles, mask = generation.padded(rows, length, self.hf.generation_config.pad_token_id)
        if not mask.all():
            self.checks.padding()
        hooks = intervening(self.hf, self.structure, changes, roles=roles, mask=mask)
        with self.editing(more), hooks:
            return generation.greedy(self.hf, self.chat.tokenizer, ids, mask, max_new_tokens=most)
