"""Running the cells of one task: searches one at a time, answers of other attacks in batches."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field

from attacks.attack import Artefact, State, Step
from attacks.core.prompt import Messages
from attacks.core.weights import Change
from attacks.core.alike import same
from benchmarks.harness.bench import Bench, OnStep, Outcome, Tally, release_memory
from benchmarks.harness.budget import exhausted, verification_due
from benchmarks.harness.cells import Cell, Task, cell_generator
from benchmarks.harness.failures import CONTAINED, Failure, failure_of
from benchmarks.harness.resuming import Resumable
from benchmarks.harness.samples import drawn_answers
from benchmarks.harness.timing import Clock
from benchmarks.storage.records import FirstSuccess, Status

#: Shape of the batches in which attacks without search are answered: a constant of the suite, so
#: that an answer does not depend on the limit, on resuming, or on the number of workers.
BATCH_SIZE, PAD_TO = 16, 32


def split(cells: Sequence[Cell]) -> Iterator[Task]:
    """Tasks for cells of one attack and artefact."""
    if not cells:
        return
    if cells[0].attack.searches:
        for cell in cells:
            yield Task((cell,))
        return
    # Sorted, since a batch holds prompts of like length only and is filled up otherwise.
    ordered = sorted(cells, key=lambda cell: len(cell.behavior.text))
    for start in range(0, len(ordered), BATCH_SIZE):
        yield Task(tuple(ordered[start : start + BATCH_SIZE]))


def execute(bench: Bench, task: Task, on_step: OnStep) -> list[Outcome]:
    """An outcome for each cell of the task; what goes wrong inside a cell is its record.

    Raises:
        BadInput: damaged artefact files.
    """
    process = os.getpid()
    artefact = bench.artefact(task.cells[0])
    # What an attack prints is no part of what a command prints.
    with redirect_stdout(sys.stderr):
        if task.attack.searches:
            outcomes = [_Search(bench, cell, artefact, on_step).run() for cell in task.cells]
        else:
            outcomes = _answer_all(bench, task.cells, artefact)
    if os.getpid() != process:
        # An attack has forked, and its child would do all over again what its parent does.
        os._exit(1)
    if any(outcome.record.status == "out_of_memory" for outcome in outcomes):
        release_memory()
    return outcomes


@dataclass
class _Search:
    """The search of one cell, verified on the way."""

    bench: Bench
    cell: Cell
    artefact: Artefact
    on_step: OnStep
    tally: Tally = field(default_factory=Tally)
    latest: Step | None = None
    verified: tuple[int, str] = (0, "")
    """The step whose best candidate was verified last, and its answer."""

    def __post_init__(self) -> None:
        self.clock = Clock(self.bench.model.synchronise)
        self.clock.charge("prepare", self.artefact.seconds)
        self.resumable = Resumable(self.bench, self.cell)

    def run(self) -> Outcome:
        """Search, verification, answers, judgements."""
        bench, cell = self.bench, self.cell
        bench.model.reset_peak_memory()
        try:
            status = self._search()
            assert self.latest is not None
            prompts = self.latest.prompts[: bench.setup.settings.attempts]
            completions = [self.verified[1], *self._generate(prompts[1:])]
            target = self.tally.target
            changes = self.latest.interventions
            drawn = drawn_answers(bench, cell, prompts[0], changes, self.clock)
            prompts, completions = (*prompts, *prompts[:1] * len(drawn)), [*completions, *drawn]
            with self.clock.phase("judge"):
                garbled = bench.garbled(prompts, completions, drawn=len(drawn))
            judgements = bench.judged(cell, completions, self.clock, garbled=garbled, target=target)
        except CONTAINED as error:
            failure = failure_of(error)
        except KeyboardInterrupt:
            self.resumable.save()
            raise
        else:
            record = bench.record(
                cell,
                self.tally,
                self.clock,
                prompts=prompts,
                completions=completions,
                garbled=garbled,
                status=status,
                reason="the time budget was used up" if status == "budget" else "",
            )
            return Outcome(record, judgements)
        # Made outside the except block, which holds on to the frames of what failed.
        self.latest = None
        return _failed(bench, cell, self.tally, self.clock, failure)

    def _search(self) -> Status:
        settings = self.bench.setup.settings
        steps, step = self._begun()
        status: Status = "ok"
        while step is not None:
            if self.latest is not None:
                self.resumable.at(self.latest.state, self.tally, self.clock.seconds, step)
            tally = self.tally
            tally.add_step(step)
            self.latest = step
            self.on_step(tally.steps, step.loss)
            if verification_due(tally.steps):
                self._verify(step)
                if tally.first_success and settings.stop == "first-success":
                    return status
            if exhausted(self.clock.spent("search", "verify"), settings.seconds):
                status = "budget"
                break
            step = self._next(steps)
        if self.latest is None:
            raise RuntimeError("the attack yielded no step")
        if self.verified[0] != self.tally.steps:
            self._verify(self.latest)
        return status

    def _begun(self) -> tuple[Iterator[Step], Step | None]:
        """The attack's steps and the first of them, from the checkpoint on where there is one.

        The step after a checkpoint is taken twice, by a process that has ended and by this one, and
        counts as what it cost the first.
        """
        saved = self.resumable.load()
        if saved is not None:
            steps = self._steps(saved.state)
            step = self.resumable.again(steps, saved)
            if step is not None:
                self.tally = saved.tally
                self.clock = Clock(self.bench.model.synchronise, saved.seconds)
                return steps, step
        with self.clock.phase("search"):
            steps = self._steps(None)
        return steps, self._next(steps)

    def _steps(self, state: State | None) -> Iterator[Step]:
        attack, behavior = self.cell.attack, self.cell.behavior
        rng = cell_generator(attack, behavior.id, self.cell.seed)
        shown = behavior.for_attack()
        return iter(
            attack.run(
                self.bench.views.attacked(self.cell.guard),
                shown,
                artefact=self.artefact,
                rng=rng,
                state=state,
            )
        )

    def _next(self, steps: Iterator[Step]) -> Step | None:
        before = self.bench.model.meter.snapshot()
        with self.clock.phase("search"):
            step = next(steps, None)
        self.tally.add_work(self.bench.model.meter.snapshot() - before)
        return step

    def _verify(self, step: Step) -> None:
        """One greedy answer to the best candidate, for the stop judge."""
        tally = self.tally
        with self.clock.phase("verify"):
            (completion,) = self.bench.views.answering(self.cell.guard).generate(
                step.prompts[:1],
                max_new_tokens=self.bench.setup.settings.max_new_tokens,
                interventions=step.interventions,
            )
            success = self.bench.succeeds(self.cell.behavior, step.prompts[0], completion)
        tally.verifications += 1
        self.verified = (tally.steps, completion)
        if success and tally.first_success is None:
            spent = self.clock.spent("search", "verify")
            tally.first_success = FirstSuccess(tally.steps, spent, tally.work.flops)

    def _generate(self, prompts: Sequence[Messages]) -> list[str]:
        if not prompts or self.latest is None:
            return []
        with self.clock.phase("generate"):
            return self.bench.views.answering(self.cell.guard).generate(
                prompts,
                max_new_tokens=self.bench.setup.settings.max_new_tokens,
                interventions=self.latest.interventions,
            )


@dataclass
class _Pending:
    """A cell of an attack without search, between its step and its answers."""

    cell: Cell
    clock: Clock
    tally: Tally = field(default_factory=Tally)
    prompts: tuple[Messages, ...] = ()
    interventions: tuple[Change, ...] = ()
    failure: Failure | None = None


def _answer_all(bench: Bench, cells: Sequence[Cell], artefact: Artefact) -> list[Outcome]:
    bench.model.reset_peak_memory()
    pending = [_single_step(bench, cell, artefact) for cell in cells]
    answers: dict[str, list[str]] = {}
    for group in _alike([item for item in pending if item.failure is None]):
        answers |= _answer(bench, group)
    return [_finish(bench, item, answers.get(item.cell.key, [])) for item in pending]


def _single_step(bench: Bench, cell: Cell, artefact: Artefact) -> _Pending:
    item = _Pending(cell, Clock(bench.model.synchronise))
    item.clock.charge("prepare", artefact.seconds)
    before = bench.model.meter.snapshot()
    try:
        with item.clock.phase("search"):
            rng = cell_generator(cell.attack, cell.behavior.id, cell.seed)
            shown = cell.behavior.for_attack()
            model = bench.views.attacked(cell.guard)
            step = next(iter(cell.attack.run(model, shown, artefact=artefact, rng=rng)))
        item.tally.add_step(step)
        item.prompts = step.prompts[: bench.setup.settings.attempts]
        item.interventions = step.interventions
    except StopIteration:
        item.failure = Failure("error", "RuntimeError: the attack yielded no step")
    except CONTAINED as error:
        item.failure = failure_of(error)
    item.tally.add_work(bench.model.meter.snapshot() - before)
    return item


def _alike(items: Sequence[_Pending]) -> list[list[_Pending]]:
    """Groups of cells with the same interventions: an attack may choose them by behaviour."""
    groups: list[list[_Pending]] = []
    for item in items:
        for group in groups:
            if same(group[0].interventions, item.interventions):
                group.append(item)
                break
        else:
            groups.append([item])
    return groups


def _answer(bench: Bench, group: Sequence[_Pending]) -> dict[str, list[str]]:
    """Answers by cell key, generated together and their time shared equally.

    Where the batch fails each cell is tried alone, so that one prompt too long costs one cell.
    """
    shared = Clock(bench.model.synchronise)
    prompts = [prompt for item in group for prompt in item.prompts]
    failure = None
    try:
        with shared.phase("generate"):
            texts = bench.views.answering(group[0].cell.guard).generate(
                prompts,
                max_new_tokens=bench.setup.settings.max_new_tokens,
                interventions=group[0].interventions,
                pad_to=PAD_TO,
                batch_size=BATCH_SIZE,
            )
    except CONTAINED as error:
        failure = failure_of(error)
    if failure is not None:
        if len(group) == 1:
            group[0].failure = failure
            return {}
        alone = [_answer(bench, [item]) for item in group]
        return {key: texts for answers in alone for key, texts in answers.items()}
    answers, rest = {}, iter(texts)
    for item in group:
        answers[item.cell.key] = [next(rest) for _ in item.prompts]
        share = shared.spent("generate") * len(item.prompts) / len(prompts)
        item.clock.charge("generate", share)
    return answers


def _finish(bench: Bench, item: _Pending, completions: Sequence[str]) -> Outcome:
    """The stop judge's word on the only candidate, the judgements, the record."""
    cell, clock, tally = item.cell, item.clock, item.tally
    if item.failure is not None:
        return _failed(bench, cell, tally, clock, item.failure)
    try:
        drawn = drawn_answers(bench, cell, item.prompts[0], item.interventions, clock)
        item.prompts += item.prompts[:1] * len(drawn)
        completions = [*completions, *drawn]
        with clock.phase("judge"):
            garbled = bench.garbled(item.prompts, completions, drawn=len(drawn))
        first = item.prompts[0], completions[0]
        if bench.succeeds(cell.behavior, *first, garbled=garbled[0]):
            spent = clock.spent("search", "generate")
            tally.first_success = FirstSuccess(1, spent, tally.work.flops)
        judgements = bench.judged(cell, completions, clock, garbled=garbled, target=tally.target)
        # On no clock, and after the cell's work was counted: it measures the attack, and is no part
        # of it.
        damage = bench.damage(cell.behavior, item.interventions)
    except CONTAINED as error:
        return _failed(bench, cell, tally, clock, failure_of(error))
    record = bench.record(
        cell,
        tally,
        clock,
        prompts=item.prompts,
        completions=completions,
        garbled=garbled,
        damage=damage,
    )
    return Outcome(record, judgements)


def _failed(bench: Bench, cell: Cell, tally: Tally, clock: Clock, failure: Failure) -> Outcome:
    return Outcome(bench.record(cell, tally, clock, status=failure.status, reason=failure.reason))
