"""PGD on relaxed tokens: gradient descent between tokens, discretised at each step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Generator

from attacks.attack import Artefact, Attack, Behavior, State, Step, ThreatModel
from attacks.core.objectives import TargetCrossEntropy
from attacks.core.prompt import suffixed
from attacks.core.search import Evaluator, RelaxedSearch

if TYPE_CHECKING:
    from attacks.core.model import Model


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient descent (Geisler et al. 2024, arXiv 2402.09154) on a suffix.

    It returns strings: the best discrete fillings encountered. A step costs one backward and two
    forward passes, so hundreds of steps cost as much as a few of GCG's. The published setting is
    steps=5000, slots=20, warm_up=100, anneal=250, patience=100, with the other numbers as they are
    here; the defaults suit some hundred steps on small models.
    """

    name: ClassVar[str] = "pgd"
    summary: ClassVar[str] = (
        "projected gradient descent on relaxed one-hot tokens, discretised at each step"
    )
    threat_model: ClassVar[ThreatModel] = ThreatModel.PROMPT

    steps: int = 200
    """Gradient steps, each with a discretisation."""
    slots: int = 10
    """Length of the suffix in tokens."""
    rate: float = 0.11
    """Lowest learning rate of Adam (see `RelaxedSearch`)."""
    peak: float = 0.325
    """Highest learning rate, halfway through a cycle."""
    warm_up: int = 20
    """Steps at the lowest learning rate before the first cycle."""
    cycle: int = 60
    """Steps of a cosine cycle of the learning rate."""
    sharpness: float = 0.4
    """How strongly, from 0 to 1, the weights of a slot are projected towards a single token."""
    anneal: int = 50
    """Steps over which the sharpness grows to its value."""
    clip: float = 20.0
    """Largest L2 norm of a slot's gradient."""
    patience: int = 50
    """Steps without a better string after which the weights are set to the best one."""
    early_stop: float | None = None
    """The search ends once a string's loss is at most this; none: it takes all steps."""

    def run(
        self,
        model: Model,
        behavior: Behavior,
        *,
        artefact: Artefact,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[Step]:
        """One step for each gradient step and the filling read off after it.

        Raises:
            BadInput: as `Model.prompt` and `RelaxedSearch`.
        """
        search = RelaxedSearch(
            self.steps,
            self.rate,
            self.peak,
            self.warm_up,
            self.cycle,
            self.sharpness,
            self.anneal,
            self.clip,
            self.patience,
            early_stop=self.early_stop,
        )
        asked = suffixed(behavior, self.slots, system=model.system)
        prompt = model.prompt(asked, target=behavior.affirmative, rng=rng)
        evaluator = Evaluator(model, prompt, TargetCrossEntropy().bind(model, prompt, artefact))
        for found in search.run(model, prompt, evaluator, rng=rng, state=state):
            prompts = tuple(model.chat.messages(prompt, found.ids))
            yield Step(prompts, loss=float(found.losses[0]), state=found.state)
