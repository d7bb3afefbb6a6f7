"""Control tokens: what a model was trained to open every answer with (arXiv 2412.06748).

Which of them an answer gets is decided from the probabilities of its first token. The paper's rules
(section 3 and its code) are values here, and `FirstToken` puts one to work at the logits.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attacks.core.errors import BadInput
from attacks.core.interventions import Context, Intervention
from attacks.core.sites import Site

if TYPE_CHECKING:
    from attacks.core.model import Model

RESPOND = "respond"
#: What a rule says where the model's own first token shall stand.
OWN = -1

_BRACKETED = re.compile(r"\[[^\[\]]+\]")
_MARGIN = 100.0


@dataclass(frozen=True)
class ControlTokens:
    """The control tokens of a model: one opens answers, the others refusals of a kind each."""

    respond: int
    """Id"""
    refuse: tuple[int, ...]
    """Ids, one for each category; a single one where the model knows no categories."""
    names: tuple[str, ...]
    """Of `refuse`, without brackets."""

    def indices(self, names: Sequence[str]) -> tuple[int, ...]:
        """Places in `refuse` of the categories named, in the order given; of all for none.

        Raises:
            BadInput: the model has no token for a category.
        """
        for name in names:
            if name not in self.names:
                valid = ", ".join(self.names)
                raise BadInput(f"no control token for category '{name}'; valid: {valid}")
        return tuple(self.names.index(name) for name in names) or tuple(range(len(self.names)))


def find_control_tokens(
    model: Model, *, respond: str = "", refuse: Sequence[str] = ()
) -> ControlTokens:
    """The control tokens among the tokenizer's added ones, or those named.

    Found are the tokens in square brackets, in the paper's manner: `[respond]`, and the others for
    refusals. Those in capitals, such as `[INST]`, belong to the chat format.

    Args:
        model: its tokenizer is searched.
        respond: the token that opens answers, where it is another.
        refuse: the tokens that open refusals, where they are others.

    Raises:
        BadInput: the model has none, or what is named is not a single token.
    """
    added = {
        token.content: int(index)
        for index, token in model.chat.tokenizer.added_tokens_decoder.items()
    }
    found = {
        text: index
        for text, index in sorted(added.items(), key=lambda item: item[1])
        if _BRACKETED.fullmatch(text.strip()) and not text.isupper()
    }
    answer = respond or next((text for text in found if _name(text) == RESPOND), None)
    refusals = tuple(refuse) or tuple(text for text in found if text != answer)
    if answer is None or not refusals:
        raise BadInput(
            f"model '{model.name}' has no control tokens: none of its {len(added)} added tokens "
            "is [respond] accompanied by others in brackets; name them with respond and refuse"
        )
    ids = [_single(model, text, added) for text in (answer, *refusals)]
    if len(set(ids)) < len(ids):
        raise BadInput(f"model '{model.name}': a control token is named twice")
    return ControlTokens(ids[0], tuple(ids[1:]), tuple(_name(text) for text in refusals))


def _name(text: str) -> str:
    return text.strip().removeprefix("[").removesuffix("]")


def _single(model: Model, text: str, added: dict[str, int]) -> int:
    """The id of `text`, which must be one token: any other way only its last piece would count."""
    if text in added:
        return added[text]
    ids = model.chat.ids(text)
    if len(ids) != 1:
        raise BadInput(
            f"model '{model.name}': control token {text!r} must be a single token and is {len(ids)}"
        )
    return int(ids[0])


class Rule(ABC):
    """Which control token opens an answer, given the probabilities of its first token."""

    @abstractmethod
    def __call__(self, probs: Tensor) -> Tensor:
        """(B,) int64 ids from (B, V) probabilities; `OWN` where the model's own choice stands."""


@dataclass(frozen=True)
class Binary(Rule):
    """Refuse if p(refuse) >= threshold; below zero: if p(refuse) >= p(respond)."""

    refuse: int
    respond: int
    threshold: float

    def __call__(self, probs: Tensor) -> Tensor:
        bound = probs[:, self.respond] if self.threshold < 0 else self.threshold
        return torch.where(probs[:, self.refuse] >= bound, self.refuse, self.respond)


@dataclass(frozen=True)
class PerCategory(Rule):
    """The likeliest category c* decides, with p(c*) against a threshold of its own.

    c* selected and p(c*) >= its threshold: c*. Selected and below: respond. Not selected: `OWN`.
    """

    tokens: ControlTokens
    selected: tuple[int, ...]
    """Places in `tokens.refuse`."""
    thresholds: tuple[float, ...]
    """One for each that is selected."""

    def __call__(self, probs: Tensor) -> Tensor:
        refuse = torch.tensor(self.tokens.refuse, device=probs.device)
        bounds = torch.full(refuse.shape, -1.0, dtype=torch.float64, device=probs.device)
        bounds[list(self.selected)] = torch.tensor(
            self.thresholds, dtype=torch.float64, device=probs.device
        )
        share, place = probs[:, refuse].double().max(1)
        bound = bounds[place]
        chosen = torch.where(share >= bound, refuse[place], self.tokens.respond)
        return torch.where(bound < 0, OWN, chosen)


@dataclass(frozen=True)
class Sum(Rule):
    """Refuse, with the likeliest category's token, if sum over categories of p(c) >= threshold."""

    tokens: ControlTokens
    selected: tuple[int, ...]
    """Places in `tokens.refuse` that are summed over."""
    threshold: float

    def __call__(self, probs: Tensor) -> Tensor:
        refuse = torch.tensor(self.tokens.refuse, device=probs.device)[list(self.selected)]
        shares = probs[:, refuse].double()
        likeliest = refuse[shares.argmax(1)]
        return torch.where(shares.sum(1) >= self.threshold, likeliest, self.tokens.respond)


@dataclass(frozen=True)
class Force(Rule):
    """The likeliest of some tokens, whatever their probabilities."""

    ids: tuple[int, ...]

    def __call__(self, probs: Tensor) -> Tensor:
        ids = torch.tensor(self.ids, device=probs.device)
        return ids[probs[:, ids].argmax(1)]


@dataclass(frozen=True, eq=False)
class FirstToken(Intervention):
    """Makes the answer's first token the one that a rule chooses, and changes nothing else."""

    rule: Rule
    temperature: float = 1.0
    """Of the probabilities that the rule sees."""

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site(-1, "logits"),)

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        if ctx.step > 0:
            return activation
        every = torch.arange(len(activation), device=activation.device)
        at = ctx.first(1, activation).sum(1) - 1
        last = activation[every, at]
        # Double precision, since trained tokens are so sure that single would round them to one.
        chosen = self.rule((last.double() / self.temperature).softmax(-1))
        rows = (chosen != OWN).nonzero().squeeze(1)
        changed = activation.clone()
        changed[rows, at[rows], chosen[rows]] = last[rows].amax(1) + _MARGIN
        return changed
