"""Probe sampling: a small draft model chooses which candidates the model under attack evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from attacks.core.errors import BadInput
from attacks.core.objectives import TargetLoss
from attacks.core.prompt import Messages, Prompt
from attacks.core.search.coordinate import Losses
from attacks.core.sites import Site

if TYPE_CHECKING:
    from attacks.core.model import Model

_BATCH = 256


@dataclass(frozen=True)
class ProbeSampling:
    """Probe sampling (arXiv 2403.01251).

    In each step a random probe set is evaluated by the model under attack and all candidates by the
    draft. With rho their rank correlation on the probe set and alpha = (1 + rho) / 2, the draft's
    best max(1, (1 - alpha) * B / reduction) of B candidates are evaluated too: few where the draft
    agrees, many where it does not. The draft reads the strings, so it may have another tokenizer
    and another chat template; it is asked for the target loss alone.
    """

    model: str = ""
    """The draft model: a folder, a Hub id, or the name of a folder next to that of the model under
    attack (any shipped pocket model, for the shipped ones). Empty: all candidates are evaluated."""
    probe: float = 1 / 16
    """Share of the candidates in the probe set."""
    reduction: float = 8.0
    """Divides the number of candidates that the draft passes on: higher passes fewer."""

    def __post_init__(self) -> None:
        if not 0 < self.probe <= 1 or self.reduction <= 0:
            raise BadInput(
                f"probe={self.probe} and reduction={self.reduction}: the probe set is a share "
                "between 0 and 1, the reduction above 0"
            )

    def fitted(self, model: Model) -> dict[str, str]:
        """Which draft it is, for an artefact's data: a record is then about this very one.

        Raises:
            BadInput: a draft that does not load.
        """
        if not self.model:
            return {}
        return {"draft": f"{self.model}@{model.companions.get(self.model).revision}"}

    def screen(self, model: Model, prompt: Prompt, target: str, loss: TargetLoss) -> ProbeScreen:
        """The screen for one prompt; loads the draft where it is not loaded yet.

        Raises:
            BadInput: a draft that does not load.
        """
        draft = DraftLosses(model.companions.get(self.model), target, loss)
        return ProbeScreen(self, model, prompt, draft)


class DraftLosses:
    """Target losses of conversations by another model than the one under attack."""

    def __init__(self, draft: Model, target: str, loss: TargetLoss) -> None:
        """Losses by `draft` of saying `target`."""
        self.draft = draft
        self._target = target
        self._loss = loss

    @torch.no_grad()
    def losses(self, conversations: Sequence[Messages]) -> Tensor:
        """(N,) float32 losses, on the CPU.

        Conversations of one length share a batch, so that nothing is padded; what all of them begin
        with is computed once.

        Raises:
            BadInput: the draft's template refuses the conversation or the target.
        """
        rows = self._tokens(conversations)
        shared = _shared_length([ids for ids, _ in rows])
        prefix = self.draft.prefix(rows[0][0][:shared]) if shared else None
        groups: dict[tuple[int, int], list[int]] = {}
        for index, (ids, start) in enumerate(rows):
            groups.setdefault((len(ids), start), []).append(index)
        losses = torch.empty(len(rows))
        for (length, start), members in groups.items():
            site = Site(-1, "logits", tuple(range(start - 1, length - 1)))
            for at in range(0, len(members), _BATCH):
                chunk = members[at : at + _BATCH]
                ids = torch.stack([rows[index][0] for index in chunk])
                logits = self.draft.trace(ids[:, shared:], [site], prefix=prefix)[site].float()
                wanted = ids[:, start:].to(logits.device)
                losses[chunk] = self._loss.of(logits, wanted).float().cpu()
        return losses

    def _tokens(self, conversations: Sequence[Messages]) -> list[tuple[Tensor, int]]:
        """Ids of each conversation with the target, and where the target begins."""
        chat = self.draft.chat
        texts = [chat.render(messages) for messages in conversations]
        heads = chat.encode(texts)
        wholes = chat.encode([text + self._target for text in texts])
        rows = []
        for head, whole in zip(heads, wholes, strict=True):
            start = len(head.ids)
            if whole.ids[:start] != head.ids or len(whole.ids) == start:
                raise BadInput(
                    f"draft '{self.draft.name}': target {self._target!r} cannot be tokenised after "
                    "the prompt"
                )
            if len(whole.ids) > chat.context:
                raise BadInput(
                    f"prompt of {len(whole.ids)} tokens is longer than the context of draft "
                    f"'{self.draft.name}' ({chat.context})"
                )
            rows.append((torch.tensor(whole.ids), start))
        return rows


class ProbeScreen:
    """`ProbeSampling` for one prompt; see `coordinate.Screen`."""

    def __init__(
        self, numbers: ProbeSampling, model: Model, prompt: Prompt, draft: DraftLosses
    ) -> None:
        """Screen fillings of `prompt` by `draft`."""
        self._numbers = numbers
        self._model = model
        self._prompt = prompt
        self._draft = draft

    def __call__(
        self, candidates: Tensor, evaluator: Losses, k: int, rng: Generator
    ) -> tuple[Tensor, Tensor]:
        """The probe set and the draft's best of the others, with the losses of `evaluator`."""
        count = len(candidates)
        size = max(2, round(self._numbers.probe * count))
        if size >= count:
            return candidates, evaluator.losses(candidates, k)
        probe = torch.randperm(count, generator=rng)[:size]
        measured = evaluator.losses(candidates[probe])
        guessed = self._guessed(candidates)
        keep = filtered_size(rank_correlation(measured, guessed[probe]), count, self._numbers)
        best = guessed.argsort(stable=True)[:keep]
        chosen = best[~torch.isin(best, probe)]
        if len(chosen) == 0:
            return candidates[probe], measured
        more = evaluator.losses(candidates[chosen], k)
        return torch.cat([candidates[probe], candidates[chosen]]), torch.cat([measured, more])

    def _guessed(self, candidates: Tensor) -> Tensor:
        """(B,) losses by the draft, whose work is charged to the model under attack."""
        meter = self._draft.draft.meter
        before = meter.snapshot()
        losses = self._draft.losses(self._model.chat.messages(self._prompt, candidates))
        if meter is not self._model.meter:
            self._model.meter.charge(meter.snapshot() - before)
        return losses


def filtered_size(rho: float, count: int, numbers: ProbeSampling) -> int:
    """How many of `count` candidates the draft lets through (arXiv 2403.01251, section 3)."""
    alpha = (1 + rho) / 2
    return max(1, min(count, int((1 - alpha) * count / numbers.reduction)))


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's rho of two (N,) tensors; ties share their mean rank, and constants have 0."""
    first, second = (_centred_ranks(values) for values in (one, other))
    length = float(first.norm() * second.norm())
    return float(first @ second) / length if length > 0 else 0.0


def _centred_ranks(values: Tensor) -> Tensor:
    """(N,) float64 ranks less their mean."""
    values = values.double()
    below = (values.unsqueeze(0) < values.unsqueeze(1)).sum(1)
    equal = (values.unsqueeze(0) == values.unsqueeze(1)).sum(1)
    ranks = below + (equal.double() - 1) / 2
    return ranks - ranks.mean()


def _shared_length(rows: Sequence[Tensor]) -> int:
    """How many ids all rows begin with; at least one of each row is left over."""
    length = min(len(row) for row in rows) - 1
    heads = torch.stack([row[:length] for row in rows])
    same = (heads == heads[0]).all(0)
    return int(same.long().cumprod(0).sum())
