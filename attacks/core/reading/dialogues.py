"""Plain requests with answers, in tokens: how likely a model finds the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attacks.core.prompt import with_answer
from attacks.core.reading.states import LEAST_LOG_PROB
from attacks.core.sites import Site
from attacks.core.weights import Change

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True, eq=False)
class Dialogue:
    """A plain request and an answer to it, in tokens."""

    ids: Tensor
    """(T,) int64"""
    roles: Tensor
    """(T,) int64 role of each position (see `attacks.core.prompt`)."""
    first: int
    """Position of the answer's first token."""

    @classmethod
    def of(cls, model: Model, text: str, answer: str) -> Dialogue:
        """The request `text` with `answer`, as the model's own template writes it."""
        prompt = model.plain(text, target=answer)
        roles = with_answer(prompt.roles, prompt.target_ids)
        return cls(prompt.sequence, roles, len(prompt.ids))

    def first_tokens(self, count: int) -> Dialogue:
        """This dialogue with at most the first `count` tokens of the answer."""
        end = self.first + count
        return replace(self, ids=self.ids[:end], roles=self.roles[:end])

    @property
    def reads(self) -> range:
        """Positions whose logits predict the answer."""
        return range(self.first - 1, len(self.ids) - 1)


def answer_log_probs(
    model: Model, dialogues: Sequence[Dialogue], changes: Sequence[Change] = ()
) -> list[Tensor]:
    """(G, V) float32 log-probabilities at each answer's tokens, of one batch; differentiable."""
    union = sorted({at for dialogue in dialogues for at in dialogue.reads})
    where = {at: row for row, at in enumerate(union)}
    site = Site(-1, "logits", tuple(union))
    ids, roles = (
        pad_sequence(rows, batch_first=True)
        for rows in ([one.ids for one in dialogues], [one.roles for one in dialogues])
    )
    logits = model.trace(ids, [site], interventions=changes, roles=roles)[site]
    return [
        logits[row, [where[at] for at in dialogue.reads]].float().log_softmax(-1)
        for row, dialogue in enumerate(dialogues)
    ]


def token_log_probs(log_probs: Sequence[Tensor], dialogues: Sequence[Dialogue]) -> list[Tensor]:
    """(G,) log-probability of each token of each answer, from what `answer_log_probs` gives."""
    return [
        rows.gather(1, dialogue.ids[dialogue.first :, None].to(rows.device)).squeeze(1)
        for rows, dialogue in zip(log_probs, dialogues, strict=True)
    ]


def cross_entropy(log_probs: Sequence[Tensor], dialogues: Sequence[Dialogue]) -> Tensor:
    """() mean over dialogues of the mean negative log-probability of the answer's tokens, nats."""
    return torch.stack([-row.mean() for row in token_log_probs(log_probs, dialogues)]).mean()


def divergence(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """() mean over dialogues of the mean KL(before || after) at the answer's tokens, nats.

    Tokens that are all but impossible count with a log-probability of `LEAST_LOG_PROB`, so that the
    divergence stays finite.
    """
    found = []
    for rows in zip(before, after, strict=True):
        one, other = (row.clamp_min(LEAST_LOG_PROB) for row in rows)
        found.append((one.exp() * (one - other)).sum(1).mean())
    return torch.stack(found).mean()


@torch.no_grad()
def answer_kl(model: Model, dialogue: Dialogue, changes: Sequence[Change]) -> float:
    """KL(as it is || changed) at the answer's tokens, nats a token."""
    before, after = (answer_log_probs(model, [dialogue], made) for made in ((), changes))
    return float(divergence(before, after))
