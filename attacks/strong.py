"""The strong default: a combination of the options that worked best in the other searches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Generator

from attacks.attack import Artefact, Attack, Behavior, State, Step, ThreatModel
from attacks.core.analysis.survey import Survey, choose_layers, survey
from attacks.core.errors import BadInput
from attacks.core.layout import Layout
from attacks.core.objectives import Objective, ProbeLoss, TargetCrossEntropy, TargetMismatch
from attacks.core.prompt import Prompt
from attacks.core.refusals.own_answers import GIVEN, OWN, OwnAnswers
from attacks.core.search import CoordinateSearch, Evaluator, Found, Moves
from attacks.core.search.stages import Stage, Verdict, search_stages

if TYPE_CHECKING:
    from attacks.core.model import Model

#: Training behaviours that tell how the model opens its answers, and the share of them that has to
#: begin as the behaviours' targets do, for these to be worth a search of their own.
_TRIED, _OPENS = 8, 0.5
#: Tokens of the opening of an own answer.
_BEGUN = 8


@dataclass(frozen=True)
class Strong(Attack):
    """Slots on both sides of the request, many starts, few candidates at first, early stopping.

    GCG (arXiv 2307.15043) with merged candidates (I-GCG, arXiv 2405.21018) and the targets of this
    suite's subspace rerouting (after arXiv 2503.06269); the combination is this suite's.

    The target is the model's own answer with refusal ablated, with the behaviour's target as the
    fallback (`OwnAnswers`). The behaviour's target, which it mostly opens with, is minimised first,
    and all of it once that is said or half of the steps are over; a model that opens its answers
    otherwise, on training behaviours, is searched for all of it from the start, or, where that is
    longer than `tokens`, for its opening first and then for all of it for up to a quarter of the
    steps. The search stops when greedy decoding gives all of it. No judge is consulted.
    """

    name: ClassVar[str] = "strong"
    summary: ClassVar[str] = (
        "the strong default: slots on both sides, own answer as target, merging"
    )
    threat_model: ClassVar[ThreatModel] = ThreatModel.PROMPT
    needs_train: ClassVar[bool] = True

    steps: int = 64
    """Maximum number of rounds of candidates."""
    width: int = 64
    """Maximum number of candidates drawn in each step."""
    topk: int = 64
    """Tokens per slot that the gradient proposes."""
    slots: int = 12
    """Tokens that are searched for, on all sides together."""
    buffer: int = 1
    """How many of the best fillings are kept; the search goes on from the best."""
    place: str = "both"
    """Where the slots stand: suffix, prefix, both, or a template (`Layout.place`)."""
    route: Literal["target", "probe"] = "target"
    """What is minimised before the whole target: its opening, or the loss of a probe that separates
    harmful from harmless prompts (`ssr-probe`)."""
    target: Literal["own", "given"] = "own"
    """The model's own answer with refusal ablated, or always the behaviour's target."""
    tokens: int = 40
    """Maximum length of the model's own answer, in tokens."""
    enough: float = 0.2
    """The loss at which the probe counts as reached."""
    starts: int = 16
    """Random fillings evaluated as the first step; the search continues from the best."""
    first: int = 16
    """Candidates of the first round; each further round draws twice as many, up to `width`."""
    merge: int = 7
    """How many of a round's best candidates have their changes merged."""
    restart: int = 8
    """Rounds without improvement after which a stage starts from new fillings; 0: never."""

    def __post_init__(self) -> None:
        self.search()  # Numbers that do not go together are refused before anything runs.
        Layout(self.place)
        if self.tokens < 1 or self.restart < 0:
            raise BadInput("tokens must be at least 1, restart at least 0")

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Survey the model for what brings its own answers, and for a probe.

        Raises:
            BadInput: as `survey`.
        """
        return self.fitted(model, survey(model, train, rng=rng), train)

    def fitted(self, model: Model, found: Survey, train: Sequence[Behavior]) -> Artefact:
        """The artefact, from a survey that is there already."""
        tensors = {name: found.tensors[name] for name in OWN if name in found.tensors}
        data = dict(found.data)
        if self.route == "probe":
            layers = choose_layers(found, (), who=self.name)
            for kind in ("weight", "bias"):
                tensors |= {f"{kind}.{at}": found.tensors[f"{kind}.{at}"] for at in layers}
            data["layers"] = list(layers)
        if self.target == "own":
            own = OwnAnswers.of(tensors, data, model.n_layers)
            tried = [row for row in train if row.harmful][:_TRIED]
            data["opens"] = own.open_as_given(model, tried, tokens=self.tokens)
        return Artefact(tensors, data, check=dict(found.check))

    def search(self) -> CoordinateSearch:
        """The numbers of the search."""
        moves = Moves(
            merge=self.merge,
            starts=self.starts,
            first=self.first,
        )
        return CoordinateSearch(self.steps, self.width, self.topk, buffer=self.buffer, moves=moves)

    def stages(
        self, model: Model, behavior: Behavior, artefact: Artefact, rng: Generator
    ) -> list[Callable[[], Stage]]:
        """The probe, where that is asked for, the given target, the own answer."""
        own = OwnAnswers.of(artefact.tensors, artefact.data, model.n_layers)
        asked = Layout(self.place).conversation(model, behavior, self.slots)
        prompt = model.prompt(asked, target=behavior.affirmative, rng=rng)

        def evaluator(objective: Objective, prompt: Prompt) -> Evaluator:
            return Evaluator(model, prompt, objective.bind(model, prompt, artefact))

        def probed() -> Stage:
            losses = evaluator(ProbeLoss(tuple(artefact.data["layers"])), prompt)
            return Stage(prompt, losses, self._through, within=max(1, self.steps // 4))

        def said(prompt: Prompt, source: str, *, last: bool, closing: int | None = None) -> Stage:
            mismatch = evaluator(TargetMismatch(), prompt)

            def judge(found: Found) -> Verdict:
                if float(mismatch.losses(found.ids[:1])[0]) > 0:
                    return "on"
                if not last or source != GIVEN:
                    return "passed"
                (messages,) = model.chat.messages(prompt, found.ids[:1])
                good = own.answered(model, behavior, messages, tokens=self.tokens)
                return "passed" if good else "astray"

            losses = evaluator(TargetCrossEntropy(), prompt)
            within = None if last else max(1, self.steps // 2)
            return Stage(prompt, losses, judge, within=within, closing=closing, source=source)

        def towards(target: str) -> Prompt:
            return model.prompt(asked, target=target, rng=rng, init=prompt.slot_ids)

        def answered() -> Stage:
            target, source = own.target(model, behavior, tokens=self.tokens)
            return said(towards(target), source, last=True)

        route = [probed] if self.route == "probe" else []
        if self.target == "given":
            return [*route, lambda: said(prompt, GIVEN, last=True)]
        if artefact.data.get("opens", 1.0) >= _OPENS:
            return [*route, lambda: said(prompt, GIVEN, last=False), answered]
        target, source = own.target(model, behavior, tokens=self.tokens)
        opening = own.opening(model, behavior, target, tokens=_BEGUN)
        closing = None
        if opening != target:
            route.append(lambda: said(towards(opening), source, last=False))
            closing = max(1, self.steps // 4)
        return [*route, lambda: said(towards(target), source, last=True, closing=closing)]

    def _through(self, found: Found) -> Verdict:
        """Whether the probe is."""
        return "passed" if float(found.losses[0]) <= self.enough else "on"

    def run(
        self,
        model: Model,
        behavior: Behavior,
        *,
        artefact: Artefact,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[Step]:
        """One step for the starts, and one for each round of candidates."""
        stages = self.stages(model, behavior, artefact, rng)
        for found in search_stages(
            model, stages, self.search(), restart=self.restart, rng=rng, state=state
        ):
            yield Step(found.prompts, loss=found.loss, state=found.state, source=found.source)
