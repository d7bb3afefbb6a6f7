"""How many searches fill a device (`--together auto`): measured, with more and more of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

from torch import Generator, Tensor

from attacks.attack import Artefact, Behavior
from attacks.core.model import JointModel, Model, refusal_to_join
from attacks.core.objectives import TargetCrossEntropy
from attacks.core.prompt import suffixed
from attacks.core.search import Evaluator
from attacks.core.search.candidates import swap, uniform_choices
from benchmarks.common.progress import say
from benchmarks.harness.bench import Bench, release_memory
from benchmarks.harness.cells import Cell
from benchmarks.harness.failures import CONTAINED, failure_of
from benchmarks.harness.rounds import Rounds, Seat
from benchmarks.harness.timing import Stopwatch

#: The most searches that are tried together.
MOST = 64
#: The smallest number is taken that makes this much of the best number of steps a second.
ENOUGH = 0.9
#: Steps of each search that count, after one to warm up.
_STEPS = 2


class Shape(NamedTuple):
    """What a step of a search computes."""

    width: int = 64
    slots: int = 12


def steps_per_second(
    model: Model, behaviors: Sequence[Behavior], shape: Shape, together: int
) -> float:
    """Steps of so many searches at a time: a gradient, and the losses of `shape.width` candidates.

    Everything that a joint step takes is in it, what goes on between passes too; on a CPU seconds
    are the processor's, which others on a busy machine hardly stretch. The searches are for the
    `behaviors`, again where there are fewer.
    """

    def searching(behavior: Behavior, steps: int, seat: Seat[None]) -> None:
        view, rng = JointModel(model, seat.ask), Generator().manual_seed(0)
        prompt = view.prompt(suffixed(behavior, shape.slots), target=behavior.affirmative, rng=rng)
        evaluator = Evaluator(view, prompt, TargetCrossEntropy().bind(view, prompt, Artefact()))
        at: Tensor = prompt.slot_ids
        choices = uniform_choices(at, view.chat.allowed)
        for _ in range(steps):
            evaluator.gradient(at)
            candidates = swap(at, choices, width=shape.width, n_replace=1, rng=rng)
            at = candidates[int(evaluator.losses(candidates, 1).argmin())]

    seconds = []
    for steps in (1, _STEPS + 1):
        jobs = [
            partial(searching, behaviors[number % len(behaviors)], steps)
            for number in range(together)
        ]
        watch = Stopwatch()
        list(Rounds(together, model.synchronise).run(jobs))
        model.synchronise()
        seconds.append(watch.processor if model.device.type == "cpu" else watch.elapsed)
    return _STEPS * together / max(1e-9, seconds[1] - seconds[0])


def paces(
    model: Model, behaviors: Sequence[Behavior], shape: Shape, most: int = MOST
) -> dict[int, float]:
    """Steps a second of 1, 2, 4, ... searches together, until more bring no more.

    It ends where memory runs out, or where twice as many make less than a tenth more.
    """
    found: dict[int, float] = {}
    count = 1
    while count <= most:
        failure = None
        try:
            found[count] = steps_per_second(model, behaviors, shape, count)
        except CONTAINED as error:
            failure = failure_of(error)
        if failure is not None:
            release_memory()
            if failure.status == "out_of_memory" and found:
                break
            raise RuntimeError(failure.reason)
        if found[count] < found.get(count // 2, 0.0) / ENOUGH:
            break
        count *= 2
    return found


def fewest(found: dict[int, float]) -> int:
    """The smallest number of searches that is about as fast as any."""
    best = max(found.values())
    return min(count for count, pace in found.items() if pace >= ENOUGH * best)


def together_on(bench: Bench, cells: Sequence[Cell], wanted: int | Literal["auto"]) -> int:
    """How many searches of these cells, which are of one attack, are run together."""
    if not cells or not cells[0].attack.searches:
        return 1
    if wanted != "auto":
        return wanted
    attack, model = cells[0].attack, bench.model
    most = min(MOST, len(cells))
    if most == 1 or refusal_to_join(bench.views.attacked(cells[0].guard)):
        return 1
    shape = Shape(
        *(int(getattr(attack, name, None) or least) for name, least in Shape()._asdict().items())
    )
    try:
        found = paces(model, [cell.behavior.for_attack() for cell in cells], shape, most)
    except RuntimeError as error:
        say(f"{model.name} · {attack.name}: searches one at a time: {error}")
        return 1
    count = fewest(found)
    told = ", ".join(f"{pace:.3g} of {number}" for number, pace in found.items())
    say(f"{model.name} · {attack.name}: steps a second by searches together: {told}; {count} taken")
    return count
