"""Soft prompt: continuous embeddings after the request, found by gradient descent."""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Generator, Tensor

from attacks.attack import Artefact, Attack, Behavior, State, Step, ThreatModel
from attacks.core.errors import BadInput
from attacks.core.interventions import SoftSlots
from attacks.core.objectives import TargetCrossEntropy
from attacks.core.prompt import suffixed
from attacks.core.search import Evaluator, SoftSearch

if TYPE_CHECKING:
    from attacks.core.model import Model

#: The target of target="benign": harmless, and no answer to anything.
BENIGN = "The garden is quiet this morning, and the bread is still warm."
#: Length of the target of target="random", in letters.
_LETTERS = 8


@dataclass(frozen=True)
class SoftPrompt(Attack):
    """Embedding-space attack (Schwinn et al. 2024, arXiv 2402.09063) on the slots of a suffix.

    Nothing keeps the embeddings near those of tokens, so the prompts returned contain placeholder
    tokens, which `SoftSlots` overwrites while the model reads them. Soft prompts elicit most
    strings, whatever was requested, so success with an affirmative target means little by itself:
    with target="benign" or "random" the same search makes the model say something unrelated to the
    request, and only what follows the target distinguishes knowledge from parroting.

    The authors take 100 steps with optimizer="sign" on 20 embeddings, all of "!", and count any
    success among ten snapshots; here the snapshot with the lowest loss is the one candidate.
    """

    name: ClassVar[str] = "soft-prompt"
    summary: ClassVar[str] = "optimises continuous embeddings for an affirmative answer"
    threat_model: ClassVar[ThreatModel] = ThreatModel.EMBEDDING

    steps: int = 200
    """Steps of gradient descent."""
    slots: int = 10
    """Number of attack embeddings."""
    optimizer: Literal["sign", "adam"] = "adam"
    """Steps along the sign of the gradient, as published, or by Adam (`SoftSearch`)."""
    step_size: float = 0.3
    """In units of a typical entry of an embedding."""
    every: int = 1
    """Steps of the descent between two steps of the attack, at which success is verified."""
    early_stop: float | None = 0.02
    """At this loss each token of a target of up to 34 has more than half of the probability."""
    init: str = ""
    """Text whose tokens are the starting point, repeated or cut to the slots; empty: the
    placeholders."""
    target: Literal["own", "benign", "random"] = "own"
    """The behaviour's own target; or, as a control, one fixed harmless sentence; or random letters,
    drawn for each cell."""

    def run(
        self,
        model: Model,
        behavior: Behavior,
        *,
        artefact: Artefact,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[Step]:
        """One step for each step of the descent, or for each `every` of them.

        Raises:
            BadInput: an `init` without tokens, or as `Model.prompt` and `SoftSearch`.
        """
        control = self._control(rng)
        asked = suffixed(behavior, self.slots, system=model.system)
        prompt = model.prompt(asked, target=control or behavior.affirmative, rng=rng)
        placeholders = tuple(model.chat.messages(prompt, prompt.slot_ids.unsqueeze(0)))
        evaluator = Evaluator(model, prompt, TargetCrossEntropy().bind(model, prompt, artefact))
        search = SoftSearch(self.steps, self.step_size, self.optimizer, self.every, self.early_stop)
        with model.editing():
            start = model.embed(self._start(model, prompt.slot_ids))
        for found in search.run(evaluator, start, state=state):
            soft = SoftSlots(prompt.slots, found.embeddings)
            yield Step(placeholders, (soft,), found.loss, found.state, target=control)

    def _control(self, rng: Generator) -> str | None:
        """The target that takes the place of the behaviour's own."""
        if self.target == "random":
            drawn = torch.randint(len(string.ascii_lowercase), (_LETTERS,), generator=rng)
            return "".join(string.ascii_lowercase[index] for index in drawn.tolist())
        return BENIGN if self.target == "benign" else None

    def _start(self, model: Model, placeholders: Tensor) -> Tensor:
        """(S,) the tokens whose embeddings are the start."""
        if not self.init:
            return placeholders
        ids = model.chat.ids(self.init)
        if not ids:
            raise BadInput(f"soft-prompt: init={self.init!r} has no tokens")
        return torch.tensor(ids).repeat(-(-self.slots // len(ids)))[: self.slots]
