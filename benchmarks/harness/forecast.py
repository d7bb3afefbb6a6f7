"""What cells take, from what others have taken: what to run first, and when all will be done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import mean

from attacks.attack import Attack
from benchmarks.harness.cells import Task
from benchmarks.harness.plan import Plan
from benchmarks.inputs.suites import attack_hash
from benchmarks.storage.records import Record


@dataclass
class Forecast:
    """Seconds of cells by model and attack, and how many of each are left.

    What no cell has been run of yet is taken to last as long as the attack does on other models,
    or, of an attack of which nothing is known, as its number of steps times the mean of a step.
    """

    steps: dict[str, int]
    """Of a cell, by the attack's hash."""
    left: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Cells by model and attack."""
    spent: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    """Cells that have been run and their seconds together, by model and attack."""

    @classmethod
    def of(cls, plan: Plan, records: Iterable[Record]) -> Forecast:
        """That of a whole plan, nothing of it done, and of what earlier records took."""
        found = cls({attack_hash(attack): steps_of(attack) for attack in plan.attacks})
        for model in plan.models:
            for attack, _, _ in plan.groups():
                found.left[model, attack_hash(attack)] += len(plan.behaviors(attack))
        for record in records:
            if not record.origin:
                found.learn(record)
        return found

    def learn(self, record: Record) -> None:
        """Counts what a finished cell took; failures tell nothing."""
        if record.status in ("ok", "budget"):
            at = (record.model, record.attack_hash)
            cells, seconds = self.spent.get(at, (0, 0.0))
            self.spent[at] = (cells + 1, seconds + record.seconds.own)

    def done(self, model: str, attack: str, cells: int = 1) -> None:
        """Cells that are not to be run any more."""
        self.left[model, attack] -= cells

    def cell(self, model: str, attack: str) -> float:
        """Seconds of a cell; 1 for each step where nothing has been measured."""
        means = {at: seconds / cells for at, (cells, seconds) in self.spent.items()}
        if (model, attack) in means:
            return means[model, attack]
        alike = [seconds for (_, which), seconds in means.items() if which == attack]
        if alike:
            return mean(alike)
        known = self.steps
        step = [found / known[which] for (_, which), found in means.items() if which in known]
        return known[attack] * (mean(step) if step else 1.0)

    def remaining(self, workers: int) -> float | None:
        """Seconds until all cells are done by so many at a time; None: nothing is known yet."""
        if not self.spent:
            return None
        return sum(cells * self.cell(*at) for at, cells in self.left.items() if cells) / workers

    def longest_first(self, model: str, tasks: Sequence[Task]) -> list[Task]:
        """The tasks in the order in which they end soonest on several workers.

        One that is begun last and lasts long keeps one worker busy and all others idle. List
        scheduling in this order ends after 4/3 of the shortest possible time at most (Graham 1969,
        "Bounds on multiprocessing timing anomalies", theorem 2).
        """
        costs = {key: self.cell(model, key) for key in {attack_hash(t.attack) for t in tasks}}
        return sorted(tasks, key=lambda t: -len(t.cells) * costs[attack_hash(t.attack)])


def steps_of(attack: Attack) -> int:
    """Steps of a search; 1 for what searches nothing, or for as long as it likes."""
    return int(getattr(attack, "steps", None) or 1) if attack.searches else 1
