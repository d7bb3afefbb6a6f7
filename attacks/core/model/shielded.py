"""A model behind shields, and a model whose conversations are reworded before they are rendered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import Tensor
from transformers import DynamicCache

from attacks.core.model.chat import Chat
from attacks.core.model.model import Model
from attacks.core.prompt import Messages
from attacks.core.shields import Ask, Exchange, Shield, Shielded
from attacks.core.sites import Site, Trace
from attacks.core.weights import Change

#: What is sent -> what is rendered; the attacker's own words stay whole in it.
Reword = Callable[[Messages], Messages]


class ShieldedModel(Model):
    """A light view on a model whose answers have to pass shields, the first of them first.

    Whoever reads or differentiates does so on the model behind the shields, which is the same.
    Searches add what the shields cost to their losses (`shields.penalised`).
    """

    def __init__(self, model: Model, shields: Sequence[Shield] = ()) -> None:
        """Put `shields` in front of those that `model` has."""
        self.__dict__.update(model.__dict__)
        self.shields = (*shields, *model.shields)
        self.guarded = True

    def unguarded(self) -> ShieldedModel:
        """What an attacker who knows the shields has at home: answers do not pass them.

        Losses of searches still count them.
        """
        view = copy(self)
        view.guarded = False
        return view

    def generate(
        self,
        conversations: Sequence[Messages],
        *,
        max_new_tokens: int,
        interventions: Sequence[Change] = (),
        pad_to: int = 1,
        batch_size: int | None = None,
    ) -> list[str]:
        """As `Model.generate`; each answer is a `Shielded`."""

        def behind(at: int) -> Ask:
            def ask(asked: Sequence[Messages]) -> list[Shielded]:
                if not asked:
                    return []
                if at < len(self.shields) and self.guarded:
                    exchange = Exchange(self, tuple(interventions), behind(at + 1))
                    return self.shields[at].answer(exchange, asked)
                texts = super(ShieldedModel, self).generate(
                    asked,
                    max_new_tokens=max_new_tokens,
                    interventions=interventions,
                    pad_to=pad_to,
                    batch_size=batch_size,
                )
                return [Shielded(text) for text in texts]

            return ask

        return list(behind(0)(conversations))

    def _trace(
        self,
        inputs: Tensor,
        reads: Sequence[Site],
        cache: DynamicCache | None,
        interventions: Sequence[Change],
        roles: Tensor | None,
    ) -> Trace:
        """`Model._trace`, which also reads tokens: of embeddings the nearest ones."""
        places = [site for site in reads if site.name == "tokens"]
        past = cache.get_seq_length() if cache else 0
        rest = [site for site in reads if site.name != "tokens"]
        trace = super()._trace(inputs, rest, cache, interventions, roles) if rest else {}
        if places:
            ids = self._nearest(inputs) if inputs.is_floating_point() else inputs.to(self.device)
            for site in places:
                trace[site] = ids[:, [at - past for at in site.positions]]
        return trace

    @torch.no_grad()
    def _nearest(self, embeds: Tensor) -> Tensor:
        """(B, T) the tokens whose embeddings are nearest to `embeds` (B, T, D), row by row."""
        table = self.embedding_table
        half = table.square().sum(1) / 2
        return torch.stack([(row.to(table.dtype) @ table.T - half).argmax(-1) for row in embeds])


class RewordingChat(Chat):
    """A chat template that is given other words than those sent."""

    def __init__(self, chat: Chat, reword: Reword) -> None:
        """Render what `reword` makes of each conversation, as `chat` does."""
        self.__dict__.update(chat.__dict__)
        self._inner = chat
        self._reword = reword

    def render(self, messages: Messages) -> str:
        """The reworded conversation as text; see `Chat.render`."""
        return self._inner.render(self._reword(messages))


def reworded(model: Model, reword: Reword) -> Model:
    """A light view on `model` that renders what `reword` makes of conversations.

    Roles of tokens go by the attacker's words: what is added counts as template.

    Raises:
        BadInput: the chat template refuses what comes out of it.
    """
    view = copy(model)
    view.chat = RewordingChat(model.chat, reword)
    view.chat.try_out(model.conversation("a"))
    return view
