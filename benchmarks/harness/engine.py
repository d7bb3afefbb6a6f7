"""Running the cells of one task: searches, alone or together, and answers of others in batches."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field

from attacks.attack import Artefact
from attacks.core.alike import same
from attacks.core.prompt import Messages
from attacks.core.weights import Change
from benchmarks.harness.bench import Bench, OnStep, Outcome, Tally, release_memory
from benchmarks.harness.cells import Cell, Task, cell_generator
from benchmarks.harness.failures import CONTAINED, Failure, failure_of
from benchmarks.harness.samples import drawn_answers
from benchmarks.harness.searching import Search, failed
from benchmarks.harness.timing import Clock
from benchmarks.harness.together import search_together
from benchmarks.storage.records import FirstSuccess

#: Shape of the batches in which attacks without search are answered: a constant of the suite, so
#: that an answer does not depend on the limit, on resuming, or on the number of workers.
BATCH_SIZE, PAD_TO = 16, 32


#: Searches of a task by how many run together: so many are left to follow those that end early.
_FOLLOWING = 4


def split(cells: Sequence[Cell], together: int = 1) -> Iterator[Task]:
    """Tasks for cells of one attack and artefact; searches run so many `together`."""
    if not cells:
        return
    if cells[0].attack.searches:
        size = 1 if together == 1 else _FOLLOWING * together
        for start in range(0, len(cells), size):
            yield Task(tuple(cells[start : start + size]), together)
        return
    # Sorted, since a batch holds prompts of like length only and is filled up otherwise.
    ordered = sorted(cells, key=lambda cell: len(cell.behavior.text))
    for start in range(0, len(ordered), BATCH_SIZE):
        yield Task(tuple(ordered[start : start + BATCH_SIZE]))


def execute(bench: Bench, task: Task, on_step: OnStep) -> list[Outcome]:
    """An outcome for each cell of the task, in their order; see `executed`.

    Raises:
        BadInput: damaged artefact files.
    """
    found = list(executed(bench, task, on_step))
    if task.together > 1:
        order = [cell.key for cell in task.cells]
        found.sort(key=lambda outcome: order.index(outcome.record.key))
    return found


def executed(bench: Bench, task: Task, on_step: OnStep) -> Iterator[Outcome]:
    """An outcome for each cell, as they end; what goes wrong inside a cell is its record.

    Raises:
        BadInput: damaged artefact files.
    """
    process, failed = os.getpid(), False
    outcomes = _outcomes(bench, task, bench.artefact(task.cells[0]), on_step)
    while True:
        # What an attack prints is no part of what a command prints.
        with redirect_stdout(sys.stderr):
            outcome = next(outcomes, None)
        if os.getpid() != process:
            # An attack has forked, and its child would do all over again what its parent does.
            os._exit(1)
        if outcome is None:
            break
        failed |= outcome.record.status == "out_of_memory"
        yield outcome
    if failed:
        release_memory()


def _outcomes(bench: Bench, task: Task, artefact: Artefact, on_step: OnStep) -> Iterator[Outcome]:
    if not task.attack.searches:
        yield from _answer_all(bench, task.cells, artefact)
    elif task.together > 1:
        yield from search_together(bench, task, artefact, on_step)
    else:
        for cell in task.cells:
            yield Search(bench, cell, artefact, on_step).run()


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
        return failed(bench, cell, tally, clock, item.failure)
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
        return failed(bench, cell, tally, clock, failure_of(error))
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
