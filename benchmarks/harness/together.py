"""Several searches on one model at a time (`--together`), their passes joined.

Each gets what it would get alone, up to rounding, and counts as its work what that would be alone.
Its seconds are those of its own turns and its shares, by positions, of joint passes: what a cell
costs beside the others, which on a device that one cannot fill is less than alone. So records say
how many ran together, and boards keep them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from attacks.attack import Artefact
from attacks.core.model import refusal_to_join
from benchmarks.common.progress import say
from benchmarks.harness.bench import Bench, OnStep, Outcome
from benchmarks.harness.cells import Cell, Task
from benchmarks.harness.rounds import Rounds, Seat
from benchmarks.harness.searching import Search


def search_together(
    bench: Bench, task: Task, artefact: Artefact, on_step: OnStep
) -> Iterator[Outcome]:
    """An outcome for each cell, as they end; one after the other where passes cannot be joined."""
    refusal = refusal_to_join(bench.views.attacked(task.cells[0].guard))
    if refusal:
        say(f"{bench.model.name} · {task.attack.name}: searches one at a time: {refusal}")
        for cell in task.cells:
            yield Search(bench, cell, artefact, on_step).run()
        return
    steps: dict[str, int] = {}

    def search(cell: Cell, seat: Seat[Outcome]) -> Outcome:
        def counted(done: int, loss: float | None) -> None:
            steps[cell.key] = done
            on_step(min(steps.values()), loss)

        steps[cell.key] = 0
        try:
            return Search(bench, cell, artefact, counted, seat).run()
        finally:
            del steps[cell.key]

    rounds = Rounds(task.together, bench.model.synchronise)
    for _, outcome in rounds.run([partial(search, cell) for cell in task.cells]):
        yield outcome._replace(record=replace(outcome.record, together=task.together))
