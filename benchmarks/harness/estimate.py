"""What a dry run says: the cells, and how long they will take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from attacks.attack import Attack, Behavior
from attacks.core.model import Model
from benchmarks.boards.stats import POWER, detectable
from benchmarks.common.threads import fixed_threads, threads_for
from benchmarks.harness.cells import cell_generator, prepare_generator
from benchmarks.harness.engine import BATCH_SIZE, PAD_TO
from benchmarks.harness.failures import failure_of
from benchmarks.harness.forecast import steps_of
from benchmarks.harness.plan import Plan
from benchmarks.harness.timing import Clock
from benchmarks.inputs.loading import load_model
from benchmarks.inputs.suites import attack_hash
from benchmarks.paths import data_dir
from benchmarks.storage.records import Record
from benchmarks.storage.store import RECORDS, read_records

#: Training behaviours of a kind on which preparation is timed.
_FITTED = 16

BOARD = "results/pocket-board"


class _Cost(NamedTuple):
    """Seconds."""

    cell: float
    prepare: float
    """What the attack fits, once for all cells."""


def estimate(plan: Plan, out: Path, *, workers: int) -> list[str]:
    """Lines with the cells of each model and attack, and their time; writes nothing.

    The time comes from earlier records in `out`, else from those of the committed board, else from
    one step that is run and timed for the purpose. A defended cell counts as an undefended one,
    which is said: most defences add little, but some ask the model several times.

    Raises:
        BadInput: a model that does not load, or a malformed record in `out`.
    """
    mine, board = _records(out), _records(data_dir().parent / BOARD)
    done: set[tuple[str, ...]] = {_cell(record) for record in mine if record.status == "ok"}
    # What earlier records in the folder were made with is there to be used again.
    fitted = {pair: cost._replace(prepare=0.0) for pair, cost in _costs(mine).items()}
    known = [(fitted, f"records in {out}"), (_costs(board), BOARD)]
    lines, total, fitting, cells, unknown = [], 0.0, 0.0, 0, 0
    for name, source in plan.models.items():
        model: Model | None = None
        for attack in plan.attacks:
            pair = (name, attack_hash(attack))
            stances = [s.identity if s else ("", "") for s in plan.stances(attack)]
            wanted = [
                (*pair, behavior.id, str(seed), *stance)
                for behavior in plan.behaviors(attack)
                for seed in plan.seeds
                for stance in stances
            ]
            left = sum(cell not in done for cell in wanted)
            cells += left
            line = f"{name} · {attack.name}: {len(wanted)} cells, {len(wanted) - left} done"
            cost, origin = next(
                ((of[pair], label) for of, label in known if pair in of),
                (None, "one timed step"),
            )
            if cost is None and left:
                model = model or load_model(source, name, plan.suite)
                try:
                    with fixed_threads(threads_for(model)):
                        cost = _timed(plan, model, attack)
                except Exception as error:
                    origin = f"not timed: {failure_of(error).reason}"
                    unknown += left
            if cost is not None and left:
                total += left * cost.cell
                line += f", about {_clock(left * cost.cell)}"
                if cost.prepare >= 0.5:
                    fitting += cost.prepare
                    line += f" after {_clock(cost.prepare)} of fitting"
            lines.append(f"{line} ({origin})" if left else line)
    note = f" and {unknown} cells of unknown length" if unknown else ""
    if cells and any(plan.defenses):
        note += ", without what defences take"
    lines.append(_detectable(plan))
    whole = fitting + total / workers
    lines.append(f"total: {cells} cells to run, about {_clock(whole)}{note}")
    return lines


def _detectable(plan: Plan) -> str:
    """What differences the number of behaviours is enough for."""
    n, comparisons = len(plan.attacked), max(1, len(plan.models) * (len(plan.attacks) - 1))
    nested, independent = detectable(n, comparisons=comparisons)
    if nested is None:
        return f"{n} behaviours are too few for any difference between attacks to be significant"
    of = f" for {comparisons} comparisons" if comparisons > 1 else ""
    apart = "none" if independent is None else f"{independent:.2f}"
    return (
        f"{n} behaviours: a difference in success between two attacks is detected with "
        f"probability {POWER} (exact paired test, 5 % level{of}) from {nested:.2f} on where one "
        "attack only "
        f"adds successes, and from {apart} on where they succeed independently of each other"
    )


def _records(folder: Path) -> list[Record]:
    found = read_records(folder) if (folder / RECORDS).is_file() else []
    return [record for record in found if not record.origin]


def _cell(record: Record) -> tuple[str, ...]:
    told = (record.behavior_id, record.seed, record.defense_hash, record.adaptivity)
    return (record.model, record.attack_hash, *map(str, told))


def _costs(records: Sequence[Record]) -> dict[tuple[str, str], _Cost]:
    """What a cell and the preparation took, by model and attack."""
    spent = defaultdict(list)
    for record in records:
        if record.status in ("ok", "budget"):
            found = (record.seconds.own, record.seconds.prepare)
            spent[record.model, record.attack_hash].append(found)
    return {
        key: _Cost(mean(cell for cell, _ in values), max(prepare for _, prepare in values))
        for key, values in spent.items()
    }


def _timed(plan: Plan, model: Model, attack: Attack) -> _Cost:
    """What a cell takes, from one step and its answer, and the preparation."""
    behaviors = plan.behaviors(attack)
    seed, settings = plan.seeds[0], plan.settings
    clock = Clock(model.synchronise)
    few = _few(plan.train)
    with clock.phase("prepare"):
        artefact = attack.prepare(model, few, rng=prepare_generator("attack", model.revision, seed))
    rng = cell_generator(attack, behaviors[0].id, seed)
    with clock.phase("search"):
        step = next(iter(attack.run(model, behaviors[0].for_attack(), artefact=artefact, rng=rng)))
    with clock.phase("generate"):
        model.generate(
            step.prompts[:1],
            max_new_tokens=settings.max_new_tokens,
            interventions=step.interventions,
            pad_to=PAD_TO,
            batch_size=1 if attack.searches else BATCH_SIZE,
        )
    # Parts of a fit read every prompt, others as many as they need. Measured on pocket-llama, with
    # 32 prompts for 224: within a factor of 1.3 of what refusal-direction, ssr-probe, head-ablation
    # and gcg-refusal took, half of refusal-tokens, four times as much as refusal-subspace.
    fitted = clock.spent("prepare") * (len(plan.train) / len(few) if few else 1.0) ** 0.5
    if not attack.searches:
        return _Cost(clock.spent("search") + clock.spent("generate") / BATCH_SIZE, fitted)
    steps = steps_of(attack)
    # Verified at 1, 2, 4, ... and the last step.
    answers = steps.bit_length() + settings.attempts
    cost = steps * clock.spent("search") + answers * clock.spent("generate")
    return _Cost(cost if settings.seconds is None else min(cost, settings.seconds), fitted)


def _few(train: Sequence[Behavior]) -> list[Behavior]:
    """Some training behaviours of each kind, with their twins: a dry run must not take minutes."""
    harmful = [row for row in train if row.harmful][:_FITTED]
    twins = {row.twin for row in harmful}
    harmless = [row for row in train if not row.harmful]
    paired = [row for row in harmless if row.id in twins]
    return harmful + (paired if len(paired) == len(harmful) else harmless[:_FITTED])


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
