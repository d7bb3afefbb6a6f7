"""SmoothLLM: answers to many perturbed copies of a request, and a vote."""

from __future__ import annotations

import hashlib
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from attacks.core.artefact import Artefact
from attacks.core.errors import BadInput
from attacks.core.prompt import Message, Messages, Prompt, with_answer
from attacks.core.refusals.openers import GENERAL_OPENERS, opens_with_refusal
from attacks.core.shields import Exchange, Shield, Shielded, Toll
from attacks.core.sites import Site
from benchmarks.defenses.defense import REFUSAL, Defense

if TYPE_CHECKING:
    from attacks.core.model import Model

Kind = Literal["swap", "patch", "insert"]


@dataclass(frozen=True)
class SmoothLLM(Defense):
    """Answers `copies` perturbed copies of a request and follows the majority (arXiv 2310.03684).

    In each copy `percent` of the characters are swapped for others, in one block (patch) or not, or
    have others inserted after them. If more than half of the answers are not refusals, the first of
    these is returned, and otherwise a refusal. The perturbations depend on the request and `seed`
    alone. A refusal is recognised by its opening, and not by phrases anywhere as in the authors'
    code.

    An adaptive attack adds to the loss of its best candidates the mean target loss over their
    copies; its gradient is that of the model itself.
    """

    name: ClassVar[str] = "smooth-llm"
    summary: ClassVar[str] = "majority vote over the answers to perturbed copies of the request"
    adapts: ClassVar = "search"

    kind: Kind = "swap"
    """How characters are perturbed: swap, patch (a block) or insert."""
    copies: int = 10
    """Perturbed copies that vote."""
    percent: float = 10.0
    """Percentage of the characters, at least one of them."""
    seed: int = 0
    """Of the perturbations."""
    weight: float = 1.0
    """Weight of the penalty in attacks' losses."""
    seen: int = 4
    """Copies over which attacks take the mean; not those that the defence will draw."""

    def __post_init__(self) -> None:
        for name in ("copies", "seen"):
            if getattr(self, name) < 1:
                raise BadInput(f"smooth-llm: {name}={getattr(self, name)}: must be at least 1")
        if not 0 < self.percent <= 100:
            raise BadInput(f"smooth-llm: percent={self.percent}: must be above 0, at most 100")

    def around(self, model: Model, artefact: Artefact) -> Model:
        """The vote in front of the model."""
        from attacks.core.model import ShieldedModel

        return ShieldedModel(model, [_Vote(self)])


@dataclass(frozen=True, eq=False)
class _Vote(Shield):
    of: SmoothLLM

    @property
    def name(self) -> str:
        return self.of.name

    def answer(self, exchange: Exchange, asked: Sequence[Messages]) -> list[Shielded]:
        n = self.of.copies
        garbled = [copy for turns in asked for copy in copies(self.of, turns, n, self.of.seed)]
        answers = exchange.ask(garbled)
        chat = exchange.model.chat
        return [
            voted(
                self.name,
                answers[at : at + n],
                [
                    bool(said.by) or opens_with_refusal(chat.answer(said), GENERAL_OPENERS)
                    for said in answers[at : at + n]
                ],
            )
            for at in range(0, len(answers), n)
        ]

    def toll(self, model: Model, prompt: Prompt) -> Toll | None:
        if len(prompt.target_ids) == 0:
            return None

        def mean_loss(asked: Sequence[Messages]) -> Tensor:
            # Other draws than the defence's own, which an attacker cannot know.
            n, seed = self.of.seen, self.of.seed + 1
            garbled = [copy for turns in asked for copy in copies(self.of, turns, n, seed)]
            losses = target_losses(model, garbled, prompt.target_ids)
            return self.of.weight * losses.view(len(asked), n).mean(1)

        return mean_loss


def voted(name: str, answers: Sequence[Shielded], refused: Sequence[bool]) -> Shielded:
    """The first answer that agrees with most; a draw is decided for the refusal."""
    share = sum(not no for no in refused) / len(answers)
    if share > 0.5:
        said = next(said for said, no in zip(answers, refused, strict=True) if not no)
        return said.scored(name, 0.5 - share)
    by = Counter(said.by for said in answers if said.by)
    return Shielded(REFUSAL, by.most_common(1)[0][0] if by else name, {name: 0.5 - share})


def copies(of: SmoothLLM, turns: Messages, n: int, seed: int) -> list[Messages]:
    """`n` conversations whose last user message is garbled."""
    last = max(at for at, message in enumerate(turns) if message.role == "user")
    text = turns[last].content
    told = f"{of.kind} {of.percent} {seed} {text}"
    rng = Generator().manual_seed(
        int.from_bytes(hashlib.sha256(told.encode()).digest()[:8], "big") >> 1
    )
    garbled = [perturbed(text, of.kind, of.percent, rng) for _ in range(n)]
    return [(*turns[:last], Message("user", said), *turns[last + 1 :]) for said in garbled]


def perturbed(text: str, kind: Kind, percent: float, rng: Generator) -> str:
    """`text` with `percent` of its characters garbled, at least one (arXiv 2310.03684, table 1)."""
    if not text:
        return text
    count = max(1, int(len(text) * percent / 100))
    drawn = torch.randint(len(string.printable), (count,), generator=rng).tolist()
    new = [string.printable[at] for at in drawn]
    if kind == "patch":
        start = int(torch.randint(len(text) - count + 1, (), generator=rng))
        return text[:start] + "".join(new) + text[start + count :]
    places = torch.randperm(len(text), generator=rng)[:count].tolist()
    letters = list(text)
    for place, char in zip(places, new, strict=True):
        letters[place] = char if kind == "swap" else letters[place] + char
    return "".join(letters)


@torch.no_grad()
def target_losses(model: Model, asked: Sequence[Messages], target: Tensor) -> Tensor:
    """(N,) mean -log p(token) over the tokens (G,) of a target after each conversation."""
    found = [model.chat.tokens(turns) for turns in asked]
    rows = [torch.cat([ids, target]) for ids, _ in found]
    roles = [with_answer(role, target) for _, role in found]
    losses = torch.zeros(len(rows))
    by_length: dict[int, list[int]] = {}
    for at, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(at)
    for length, members in by_length.items():
        first = length - len(target)
        site = Site(-1, "logits", tuple(range(first - 1, length - 1)))
        trace = model.trace(
            pad_sequence([rows[at] for at in members], batch_first=True),
            [site],
            roles=torch.stack([roles[at] for at in members]),
        )
        logits = trace[site].float()
        wanted = target.to(logits.device).expand(len(members), -1)
        lost = cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        losses[members] = lost.view(wanted.shape).mean(1).cpu()
    return losses
