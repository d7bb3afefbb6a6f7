"""Running a suite: model by model, fitted first, then cell by cell into the store."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from attacks.core.errors import BadInput
from attacks.core.refusals.openers import SHARE
from benchmarks.common.lines import one_line
from benchmarks.common.progress import say
from benchmarks.common.threads import fixed_threads, threads_for
from benchmarks.harness.bench import (
    Bench,
    OnStep,
    Outcome,
    Setup,
    Tally,
    make_record,
    model_id,
    release_memory,
)
from benchmarks.harness.budget import answers
from benchmarks.harness.cells import Cell, ModelId, Task, cell_key
from benchmarks.harness.checkpoints import EVERY, Checkpoints
from benchmarks.harness.engine import split
from benchmarks.harness.engines import Engine
from benchmarks.harness.estimate import estimate
from benchmarks.harness.failures import failure_of
from benchmarks.harness.fitting import Fitted, fit_coherent, fit_openers, fit_unknown
from benchmarks.harness.forecast import Forecast
from benchmarks.harness.guarding import fit_defense, fit_under
from benchmarks.harness.machinery import Machinery
from benchmarks.harness.occupancy import together_on
from benchmarks.harness.plan import Plan, check
from benchmarks.harness.timing import Bar, Stopwatch
from benchmarks.inputs.suites import Suite, attack_hash, note_suite
from benchmarks.judges.context import note_behaviors, note_speech
from benchmarks.storage.folders import ARTEFACTS, CHECKPOINTS
from benchmarks.storage.records import Record
from benchmarks.storage.store import RECORDS, Store

#: Seconds of preparation from which its end is said.
_WORTH_SAYING = 10.0


def run(
    suite: Suite,
    out: Path,
    *,
    workers: int | Literal["auto"] = 1,
    artefacts: Path | None = None,
    dry_run: bool = False,
    checkpoint: float = EVERY,
    shard: str | None = None,
    **how: Any,
) -> bool:
    """Runs what is missing of `suite` in the results folder `out`; true if no cell failed.

    A run can be killed at any moment; the next one goes on, also inside a search. Progress goes to
    stderr, the lines of a dry run to stdout.

    Args:
        suite: what to run.
        out: results folder, made if need be.
        workers: cells at a time, or "auto"; results do not depend on their number.
        artefacts: a further folder to take fitted artefacts from.
        dry_run: list the cells and estimate the time; writes nothing.
        checkpoint: seconds between two checkpoints of a search.
        shard: `I/N`: only the I-th of N parts, whose folders `merge` puts together.
        **how: the fields of `machinery.Machinery`, `workers` apart.

    Raises:
        BadInput: see `plan.check`, `Store` and `Model.load`.
    """
    machinery = Machinery(workers=workers, **how)
    if not 0 <= checkpoint < float("inf"):
        raise BadInput(f"a checkpoint every {checkpoint} seconds; valid: 0 or more")
    if artefacts is not None and not artefacts.is_dir():
        raise BadInput(f"artefact folder '{artefacts}' does not exist")
    plan = check(suite, shard)
    for note in plan.notes:
        say(note)
    if dry_run:
        for line in estimate(plan, out, workers=machinery.size):
            tqdm.write(one_line(line), file=sys.stdout)
        return True
    with ExitStack() as stack:
        store = stack.enter_context(Store(out))
        checkpoints = Checkpoints((out / CHECKPOINTS).resolve(), checkpoint)
        finished = {key for key, record in store.records.items() if record.status == "ok"}
        finished |= {path.stem for path in (out / ARTEFACTS).glob("*.json")}
        for note in (*store.notes, *checkpoints.tidy(finished)):
            say(note)
        note_behaviors(out, (*plan.attacked, *plan.answered))
        forecast = Forecast.of(plan, store.records.values())
        left = partial(forecast.remaining, machinery.size)
        title = one_line(suite.name)
        bar = stack.enter_context(
            Bar(total=plan.n_cells, unit="cell", desc=title, disable=None, left=left)
        )
        folders = (out / ARTEFACTS, *([artefacts] if artefacts else []))
        engine = stack.enter_context(machinery.start(say, partial(_steps, bar)))
        numbers = machinery.size, machinery.together
        going = _Run(plan, store, checkpoints, engine, *numbers, folders, forecast, bar)
        for name, source in plan.models.items():
            going.run_model(name, source)
    say(f"records: {out / RECORDS}; leaderboard: reroute leaderboard {out}")
    return not going.failed


@dataclasses.dataclass
class _Progress:
    """One attack on one model: what the line at its end says."""

    title: str
    left: int = 0
    kept: int = 0
    run: int = 0
    succeeded: int = 0
    failed: int = 0
    seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Counts a cell that has been run."""
        record, judgements = outcome
        self.left -= 1
        self.run += 1
        self.failed += record.status not in ("ok", "budget")
        self.succeeded += bool(judgements and judgements[0].success)
        self.seconds += record.seconds.own

    @property
    def line(self) -> str:
        """The attack's result, for the user."""
        if not self.run:
            return f"{self.title}: {self.kept} cells already done"
        kept = f", {self.kept} already done" if self.kept else ""
        failed = f", {self.failed} failed" if self.failed else ""
        return (
            f"{self.title}: {self.run} cells run{kept}, success in {self.succeeded}{failed}, "
            f"{self.seconds:.1f} s"
        )


@dataclasses.dataclass
class _Run:
    plan: Plan
    store: Store
    checkpoints: Checkpoints
    engine: Engine
    workers: int
    together: int | Literal["auto"]
    folders: Sequence[Path]
    forecast: Forecast
    bar: Bar
    failed: bool = False
    progress: dict[tuple[str, str, str], _Progress] = dataclasses.field(default_factory=dict)
    """By hashes of attack and defence, and adaptivity, for the model at hand."""

    def run_model(self, name: str, source: str) -> None:
        """All cells of one model."""
        suite = self.plan.suite
        setup = Setup(
            source=source,
            name=name,
            device=suite.device,
            device_map=suite.device_map,
            dtype=suite.dtype,
            system=suite.system,
            date=suite.date,
            settings=self.plan.settings,
            openers=(),
            artefacts=self.folders[0].resolve(),
            concurrency=self.workers,
            checkpoints=self.checkpoints,
            suite=note_suite(self.store.folder, suite),
        )
        model = setup.load()
        identity, threads = model_id(model), threads_for(model)
        weights = sum(parameter.nbytes for parameter in model.hf.parameters())
        # The workers' models are this one, whatever "auto" would be where they are.
        setup = dataclasses.replace(setup, dtype=identity.dtype, threads=threads, weights=weights)
        with fixed_threads(threads):
            self.bar.set_postfix_str("learning how the model answers and refuses")
            openers = fit_openers(model, self.plan.train, self.folders)
            coherence = fit_coherent(model, self.plan.train, self.folders)
            unknown = fit_unknown(model, self.plan.train, openers, coherence, self.folders)
            if unknown >= SHARE:
                say(
                    f"{name}: at least {unknown:.2f} of its answers to harmful training prompts "
                    "appear to be refusals in unknown wordings or answers to something else, which "
                    "judges by words miss"
                )
            speech = note_speech(self.store.folder, openers, model.chat.markers, unknown=unknown)
            setup = dataclasses.replace(setup, openers=openers, coherence=coherence, speech=speech)
            bench = Bench(setup, model)
            tasks, unfitted = self._tasks(bench)
            self._keep(unfitted, quietly=True)
            if self.engine.in_process:
                self._run(setup, tasks, identity, bench)
        # The workers load the model for themselves; it need not stay in memory once more.
        del model, bench
        release_memory()
        if not self.engine.in_process:
            self._run(setup, tasks, identity, None)

    def _run(
        self, setup: Setup, tasks: Sequence[Task], identity: ModelId, bench: Bench | None
    ) -> None:
        """Has the engine run the tasks, and keeps what becomes of them."""
        results: Any = self.engine.run(setup, tasks, bench)
        with closing(results):  # Searches that are under way are told of an interrupt at once.
            for task, result in results:
                if isinstance(result, list):
                    self._keep(result)
                else:
                    self._keep(
                        Outcome(make_record(cell, identity, setup, Tally(), failure=result))
                        for cell in task.cells
                    )

    def _tasks(self, bench: Bench) -> tuple[list[Task], list[Outcome]]:
        """What is left to run once all is fitted, and the records of what could not be fitted."""
        identity, train, folders = model_id(bench.model), self.plan.train, self.folders
        self.progress = {}
        tasks: list[Task] = []
        unfitted: list[Outcome] = []
        for attack, seed, stance in self.plan.groups():
            title, at = f"{identity.name} · {attack.name}", ("", "")
            if stance is not None:
                title, at = f"{title} · {stance.defense.name}, {stance.adaptivity}", stance.identity
            which = attack_hash(attack)
            progress = self.progress.setdefault((which, *at), _Progress(title))
            guard, amiss = None, None
            if stance is not None:
                guard, amiss = fit_defense(bench.model, stance, train, folders)
            self.bar.set_postfix_str(f"preparing {attack.name}")
            watch = Stopwatch()
            if amiss is not None and guard is not None:
                fitted = Fitted("", guard.hash, amiss)
            else:
                fitted = fit_under(
                    bench.model, attack, guard, train, seed, folders, self.checkpoints
                )
            self.bar.set_postfix_str("")
            if fitted.failure is None and watch.elapsed >= _WORTH_SAYING:
                say(f"{progress.title}: prepared in {watch.elapsed:.0f} s")
            settings, openers = self.plan.settings, bench.setup.openers
            pending = []
            for behavior in self.plan.behaviors(attack):
                key = cell_key(
                    identity, attack, fitted.hash, behavior, seed, settings, openers, guard
                )
                cell = Cell(key, attack, behavior, seed, fitted.identity, guard)
                earlier = self.store.records.get(key)
                if earlier is not None and answers(earlier, settings.seconds):
                    progress.kept += 1
                    self.forecast.done(identity.name, which)
                    self.failed |= not judge_missing(bench, self.store, cell, earlier)
                else:
                    pending.append(cell)
            progress.left += len(pending)
            if fitted.failure is None:
                if pending and fitted.verdict.startswith("failed"):
                    say(f"{progress.title}: the fit {fitted.verdict}")
                tasks += split(pending, together_on(bench, pending, self.together))
                continue
            say(f"{progress.title} could not be prepared: {fitted.failure.reason}")
            for cell in pending:
                record = make_record(cell, identity, bench.setup, Tally(), failure=fitted.failure)
                unfitted.append(Outcome(record))
        for progress in self.progress.values():
            self.bar.update(progress.kept)
            if not progress.left:
                say(progress.line)
        return self.forecast.longest_first(identity.name, tasks), unfitted

    def _keep(self, outcomes: Iterable[Outcome], *, quietly: bool = False) -> None:
        """Stores outcomes and tells the user, of single failures unless `quietly`."""
        for outcome in outcomes:
            record = outcome.record
            self.store.add(*outcome)
            if record.status in ("ok", "budget"):
                # What has failed is tried again, and goes on from there.
                self.checkpoints.remove(record.key)
            self.forecast.learn(record)
            self.forecast.done(record.model, record.attack_hash)
            self.bar.update()
            at = (record.attack_hash, record.defense_hash, record.adaptivity)
            progress = self.progress[at]
            progress.add(outcome)
            if record.status not in ("ok", "budget"):
                self.failed = True
                if not quietly:
                    say(f"{progress.title} · {record.behavior_id}: {record.status}: {record.error}")
            if not progress.left:
                say(progress.line)


def judge_missing(bench: Bench, store: Store, cell: Cell, record: Record) -> bool:
    """Judges what a kill or an earlier choice of judges has left out; whether every judge could."""
    complete = True
    for name in bench.setup.settings.judges:
        missing = set(store.unjudged(record, name))
        if not missing:
            continue
        try:
            verdicts = bench.judge(
                cell.key,
                cell.behavior,
                record.completions,
                name,
                target=record.target,
                garbled=record.garbled,
            )
        except Exception as error:
            complete = False
            say(f"judge '{name}' on {cell.behavior.id}: {failure_of(error).reason}")
        else:
            store.add_judgements([v for v in verdicts if v.completion_index in missing])
    return complete


@contextmanager
def _steps(cells: Bar, task: Task) -> Iterator[OnStep]:
    """The inner bar, over the steps of one search, where that over the `cells` is shown."""
    attack = task.attack
    with Bar(
        total=getattr(attack, "steps", None),
        unit="step",
        desc=one_line(f"{attack.name} {task.cells[0].behavior.id}"),
        leave=False,
        disable=cells.disable or not attack.searches,
    ) as bar:

        def on_step(steps: int, loss: float | None) -> None:
            if loss is not None:
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update(steps - bar.n)

        yield on_step
