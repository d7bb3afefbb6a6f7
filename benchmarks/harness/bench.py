"""One model made ready for its cells: what they share, and how their records are put together."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import torch

from attacks.attack import Artefact, Behavior, Step
from attacks.core.answer import cut
from attacks.core.model import Model, Work
from attacks.core.prompt import Messages, last_user_message, opening_of
from attacks.core.refusals.coherence import Coherence, garbled
from attacks.core.shields import Shielded
from attacks.registry import params_of
from benchmarks.common.versions import hardware, versions
from benchmarks.harness.artefacts import artefact_of, verdict_of
from benchmarks.harness.cells import Cell, ModelId, Settings
from benchmarks.harness.checkpoints import Checkpoints
from benchmarks.harness.damage import Damage, DamageMeter
from benchmarks.harness.failures import Failure
from benchmarks.harness.stances import Views
from benchmarks.harness.timing import Clock
from benchmarks.inputs.loading import load_model
from benchmarks.inputs.suites import attack_hash
from benchmarks.judges import load_judge
from benchmarks.judges.context import behavior_hash
from benchmarks.storage.records import FirstSuccess, Judgement, Record, Seconds, Status

#: Called after each step with the number of steps done and the best loss.
OnStep = Callable[[int, float | None], None]


@dataclass(frozen=True)
class Setup:
    """What a process needs to know to run cells of one model."""

    source: str
    """What to load."""
    name: str
    device: str
    dtype: str
    system: str | None
    date: str
    settings: Settings
    openers: tuple[str, ...]
    """The model's refusal openers, normalised."""
    artefacts: Path
    concurrency: int
    device_map: str | None = None
    coherence: Coherence | None = None
    """What a coherent answer is for this model; None without training behaviours."""
    checkpoints: Checkpoints | None = None
    """Where searches that are under way are kept; None: nowhere."""
    threads: int = 1
    """That one operation is computed on (`threads_for`), in all processes the same."""
    weights: int = 0
    """Bytes of the model."""
    speech: str = ""
    """`Record.speech` of this model."""
    suite: str = ""
    """`Record.suite`."""

    def load(self) -> Model:
        """The model.

        Raises:
            BadInput: see `Model.load`.
        """
        return load_model(self.source, self.name, self)


class Outcome(NamedTuple):
    """What becomes of a cell."""

    record: Record
    judgements: tuple[Judgement, ...] = ()


@dataclass
class Tally:
    """What a cell has done so far."""

    losses: list[float] = field(default_factory=list)
    steps: int = 0
    verifications: int = 0
    work: Work = field(default_factory=Work)
    first_success: FirstSuccess | None = None
    target: str | None = None
    source: str = ""
    peak_memory: int = 0
    """Bytes, of the processes that the cell went on from."""

    def add_step(self, step: Step) -> None:
        """Counts a step.

        Raises:
            ArithmeticError: its loss is not a finite number.
            RuntimeError: it proposes nothing.
        """
        self.steps += 1
        self.target, self.source = step.target, step.source
        if not step.prompts:
            raise RuntimeError(f"the attack proposed no prompt at step {self.steps}")
        if step.loss is not None:
            if not isfinite(step.loss):
                raise ArithmeticError(f"the loss is {step.loss} at step {self.steps}")
            best = min(self.losses[-1], step.loss) if self.losses else step.loss
            self.losses.append(float(best))

    def add_work(self, work: Work) -> None:
        """Adds what one step cost."""
        so_far = self.work
        self.work = Work(
            so_far.forward_tokens + work.forward_tokens,
            so_far.backward_tokens + work.backward_tokens,
            so_far.flops + work.flops,
        )


class Bench:
    """A loaded model with the settings, openers, judges and artefacts that its cells share."""

    def __init__(self, setup: Setup, model: Model | None = None) -> None:
        self.setup = setup
        self.model = model or setup.load()
        self._judges = {name: load_judge(name) for name in setup.settings.judges}
        self._stop_judge = load_judge(setup.settings.stop_judge)
        self.damage = DamageMeter(self.model, setup.openers)
        self.views = Views(self.model, setup.artefacts)

    def artefact(self, cell: Cell) -> Artefact:
        """What the cell's attack has been fitted, joined from its parts where it has some.

        Raises:
            BadInput: damaged files.
        """
        return artefact_of(self.setup.artefacts, cell.attack, cell.artefact)

    def succeeds(
        self,
        behavior: Behavior,
        asked: Messages,
        completion: str,
        *,
        garbled: bool | None = None,
    ) -> bool:
        """Whether the stop judge says so of the answer to `asked`, and it is not garbled.

        `garbled`: whether it is, where that is known already.
        """
        said = self.model.chat.answer(completion)
        verdict = self._stop_judge.judge(behavior, said, openers=self.setup.openers)
        if not verdict.success or verdict.label == "knows" or self._stop_judge.takes_garbled:
            return verdict.success is True
        return not (self.garbled([asked], [completion])[0] if garbled is None else garbled)

    def garbled(
        self, asked: Sequence[Messages], completions: Sequence[str], *, drawn: int = 0
    ) -> tuple[bool, ...]:
        """Whether each completion, after the opening that it goes on from, is garbled.

        The last `drawn` of them are drawn answers.
        """
        said = list(map(self.model.chat.answer, completions))
        texts = [last_user_message(messages) for messages in asked]
        greedy = len(said) - drawn
        marks = [
            mark
            for part, random in ((slice(greedy), False), (slice(greedy, None), True))
            for mark in garbled(
                self.model,
                self.setup.coherence,
                said[part],
                texts[part],
                drawn=random,
                openings=list(map(opening_of, asked[part])),
            )
        ]
        # What a defence says is no answer of the model's, and makes sense.
        by = [isinstance(c, Shielded) and bool(c.by) for c in completions]
        return tuple(mark and not own for mark, own in zip(marks, by, strict=True))

    def judge(
        self,
        key: str,
        behavior: Behavior,
        completions: Sequence[str],
        name: str,
        *,
        target: str | None = None,
        garbled: Sequence[bool] = (),
    ) -> list[Judgement]:
        """The verdicts of one of the suite's judges on all completions of a record.

        Judges see what was said after thinking. A `target` of the attack's own stands in for the
        behaviour's. What is `garbled` is no success, whatever the judge says (`of_garbled`).
        """
        behavior = behavior if target is None else replace(behavior, target=target)
        judge, judgements, marks = self._judges[name], [], dict(enumerate(garbled))
        for index, completion in enumerate(completions):
            said = self.model.chat.answer(completion)
            verdict = judge.judge(behavior, said, openers=self.setup.openers)
            verdict = judge.settled(verdict, garbled=marks.get(index, False), answer=said)
            judgements.append(
                Judgement(key, name, index, verdict.success, verdict.label, verdict.score)
            )
        return judgements

    def judged(
        self,
        cell: Cell,
        completions: Sequence[str],
        clock: Clock,
        *,
        garbled: Sequence[bool],
        target: str | None = None,
    ) -> tuple[Judgement, ...]:
        """The verdicts of all judges, on the cell's clock."""
        with clock.phase("judge"):
            return tuple(
                judgement
                for name in self.setup.settings.judges
                for judgement in self.judge(
                    cell.key, cell.behavior, completions, name, target=target, garbled=garbled
                )
            )

    def record(
        self,
        cell: Cell,
        tally: Tally,
        clock: Clock,
        *,
        prompts: Sequence[Messages] = (),
        completions: Sequence[str] = (),
        status: Status = "ok",
        reason: str = "",
        garbled: tuple[bool, ...] = (),
        damage: Damage | None = None,
    ) -> Record:
        """The cell's record."""
        openings = tuple(opening_of(messages) for messages in prompts)
        return make_record(
            cell,
            model_id(self.model),
            self.setup,
            tally,
            prompts=tuple(last_user_message(messages) for messages in prompts),
            completions=tuple(map(str, completions)),
            shielded=tuple(c for c in completions if isinstance(c, Shielded)),
            openings=openings if any(openings) else (),
            garbled=garbled,
            cut=cut(completions),
            verdict=verdict_of(self.artefact(cell)),
            damage=damage,
            failure=Failure(status, reason),
            seconds=clock.seconds,
            peak_memory_bytes=max(tally.peak_memory, self.model.peak_memory()),
            on=hardware(str(self.model.device)),
        )


def make_record(
    cell: Cell,
    model: ModelId,
    setup: Setup,
    tally: Tally,
    *,
    failure: Failure,
    prompts: tuple[str, ...] = (),
    completions: tuple[str, ...] = (),
    openings: tuple[str, ...] = (),
    garbled: tuple[bool, ...] = (),
    cut: tuple[bool, ...] = (),
    verdict: str = "",
    shielded: tuple[Shielded, ...] = (),
    damage: Damage | None = None,
    seconds: Seconds = Seconds(),  # noqa: B008  (frozen)
    peak_memory_bytes: int = 0,
    on: str = "",
) -> Record:
    """A record, also of a cell that no process could run."""
    return Record(
        key=cell.key,
        model=model.name,
        attack=cell.attack.name,
        params=params_of(cell.attack),
        attack_hash=attack_hash(cell.attack),
        threat_model=str(cell.attack.threat_model),
        behavior_id=cell.behavior.id,
        seed=cell.seed,
        status=failure.status,
        artefact=cell.artefact,
        harmful=cell.behavior.harmful,
        revision=model.revision,
        dtype=model.dtype,
        error=failure.reason,
        prompts=prompts,
        completions=completions,
        openings=openings,
        garbled=garbled,
        cut=cut,
        source=tally.source,
        verdict=verdict,
        target=tally.target,
        system=model.system,
        max_new_tokens=setup.settings.max_new_tokens,
        samples=setup.settings.sampling.samples if completions else 0,
        temperature=setup.settings.sampling.temperature,
        top_p=setup.settings.sampling.top_p,
        behavior_hash=behavior_hash(cell.behavior),
        speech=setup.speech,
        losses=tuple(tally.losses),
        steps=tally.steps,
        verifications=tally.verifications,
        seconds=seconds,
        first_success=tally.first_success,
        first_token_kl=damage.first_token if damage else None,
        answer_kl=damage.answer if damage else None,
        stop=setup.settings.stop,
        budget_seconds=setup.settings.seconds,
        tokens={"forward": tally.work.forward_tokens, "backward": tally.work.backward_tokens},
        flops=tally.work.flops,
        peak_memory_bytes=peak_memory_bytes,
        concurrency=setup.concurrency,
        versions=versions(),
        hardware=on,
        suite=setup.suite,
        **(cell.guard.fields() if cell.guard else {}),
        blocked=tuple(answer.by for answer in shielded),
        excess=tuple(answer.scores for answer in shielded),
    )


def model_id(model: Model) -> ModelId:
    """What identifies a loaded model."""
    return ModelId(model.name, model.revision, model.dtype, model.system)


def release_memory() -> None:
    """Gives back what dropped models and failed cells held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
