"""The search of one cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from attacks.attack import Artefact, State, Step
from attacks.core.model import JointModel, Model
from attacks.core.prompt import Messages
from benchmarks.harness.bench import Bench, OnStep, Outcome, Tally
from benchmarks.harness.budget import exhausted, verification_due
from benchmarks.harness.cells import Cell, cell_generator
from benchmarks.harness.failures import CONTAINED, Failure, failure_of
from benchmarks.harness.resuming import Resumable
from benchmarks.harness.rounds import Seat
from benchmarks.harness.samples import drawn_answers
from benchmarks.harness.timing import Clock
from benchmarks.storage.records import FirstSuccess, Seconds, Status


@dataclass
class Search:
    """The search of one cell, verified on the way, alone or beside others (see `rounds`)."""

    bench: Bench
    cell: Cell
    artefact: Artefact
    on_step: OnStep
    seat: Seat[Outcome] | None = None
    tally: Tally = field(default_factory=Tally)
    latest: Step | None = None
    verified: tuple[int, str] = (0, "")
    """The step whose best candidate was verified last, and its answer."""

    def __post_init__(self) -> None:
        self.clock = self._clock(None)
        self.clock.charge("prepare", self.artefact.seconds)
        self.resumable = Resumable(self.bench, self.cell, exactly=self.seat is None)

    def _clock(self, spent: Seconds | None) -> Clock:
        synchronise = self.bench.model.synchronise
        return Clock(synchronise, spent, *([self.seat.time.now] if self.seat else []))

    @cached_property
    def _attacked(self) -> Model:
        return self._view(self.bench.views.attacked(self.cell.guard))

    @cached_property
    def _answering(self) -> Model:
        return self._view(self.bench.views.answering(self.cell.guard))

    def _view(self, model: Model) -> Model:
        """The model, or what this search sees of it beside others."""
        return JointModel(model, self.seat.ask) if self.seat and type(model) is Model else model

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
        return failed(bench, cell, self.tally, self.clock, failure)

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
                self.clock = self._clock(saved.seconds)
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
                self._attacked,
                shown,
                artefact=self.artefact,
                rng=rng,
                state=state,
            )
        )

    def _next(self, steps: Iterator[Step]) -> Step | None:
        meter = self._attacked.meter
        before = meter.snapshot()
        with self.clock.phase("search"):
            step = next(steps, None)
        self.tally.add_work(meter.snapshot() - before)
        return step

    def _verify(self, step: Step) -> None:
        """One greedy answer to the best candidate, for the stop judge."""
        tally = self.tally
        with self.clock.phase("verify"):
            (completion,) = self._answering.generate(
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
            return self._answering.generate(
                prompts,
                max_new_tokens=self.bench.setup.settings.max_new_tokens,
                interventions=self.latest.interventions,
            )


def failed(bench: Bench, cell: Cell, tally: Tally, clock: Clock, failure: Failure) -> Outcome:
    """The outcome of a cell that has no result."""
    return Outcome(bench.record(cell, tally, clock, status=failure.status, reason=failure.reason))
