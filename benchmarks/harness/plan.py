"""Checking a suite before anything runs, and choosing its behaviours."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from attacks.attack import Attack, Behavior
from attacks.core.behavior import normalise
from attacks.core.errors import BadInput
from benchmarks.harness.cells import Sampling, Settings
from benchmarks.harness.stances import Stance, load_defenses, stances_of
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.inputs.loading import check_model
from benchmarks.inputs.models import resolve
from benchmarks.inputs.suites import Suite, suite_attacks, suite_from
from benchmarks.judges import default_judge, load_judge

if TYPE_CHECKING:
    from benchmarks.defenses.defense import Defense


class Shard(NamedTuple):
    """Part 1, 2, ... of so many parts of a run, of about as many cells of each attack."""

    part: int
    parts: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From `I/N`.

        Raises:
            BadInput: not of that form, or no I from 1 to N.
        """
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text, re.ASCII)
        shard = cls(*map(int, match.groups())) if match else cls(0, 0)
        if not 1 <= shard.part <= shard.parts:
            raise BadInput(f"shard '{text}'; valid: I/N with I from 1 to N, such as 2/8")
        return shard


@dataclass(frozen=True)
class Plan:
    """A suite with every name looked up and every behaviour chosen."""

    suite: Suite
    models: dict[str, str]
    """Name in records -> what to load."""
    attacks: tuple[Attack, ...]
    train: tuple[Behavior, ...]
    """As attacks see them."""
    attacked: tuple[Behavior, ...]
    """By every attack; all harmful."""
    answered: tuple[Behavior, ...]
    """Harmless ones, by attacks that do not search."""
    settings: Settings
    notes: tuple[str, ...]
    shard: Shard = Shard(1, 1)  # noqa: RUF009  (frozen)
    defenses: tuple[Defense | None, ...] = (None,)
    """What is put around the models, each in turn."""

    def behaviors(self, attack: Attack) -> tuple[Behavior, ...]:
        """What this attack is run on, in this shard."""
        every = self.attacked if attack.searches else self.attacked + self.answered
        return every[self.shard.part - 1 :: self.shard.parts]

    def groups(self) -> Iterator[tuple[Attack, int, Stance | None]]:
        """Attacks, seeds and stances towards defences: what shares an artefact."""
        for attack in self.attacks:
            for seed in self.seeds:
                for stance in self.stances(attack):
                    yield attack, seed, stance

    def stances(self, attack: Attack) -> list[Stance | None]:
        """What this attack is run as; None is on the model without a defence."""
        return stances_of(attack, self.defenses, self.suite.adaptivity)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Each seed once."""
        return tuple(dict.fromkeys(self.suite.seeds))

    @property
    def n_cells(self) -> int:
        """Cells of the whole run."""
        per_model = sum(len(self.behaviors(attack)) for attack, _, _ in self.groups())
        return len(self.models) * per_model


def check(suite: Suite, shard: str | None = None) -> Plan:
    """The plan of a suite, or of one part of it: `I/N`.

    Raises:
        BadInput: no such shard; a field of the wrong type or value; an unknown model, attack,
            parameter, set or judge; an empty set; training behaviours missing or overlapping;
            nothing to run.
    """
    part = Shard.parse(shard) if shard is not None else Shard(1, 1)
    suite = suite_from(dataclasses.asdict(suite), f"suite '{suite.name}'")
    attacks = suite_attacks(suite)
    models = {name: resolve(name) for name in suite.models}
    for name, source in models.items():
        check_model(source, name, suite)
    rows = load_behaviors(suite.behaviors)
    if not rows:
        raise BadInput(f"behaviour set '{suite.behaviors}' is empty")
    train = load_behaviors(suite.train) if suite.train is not None else []
    if suite.train is not None and not train:
        raise BadInput(f"training set '{suite.train}' is empty")
    for attack in attacks:
        if attack.needs_train and not train:
            raise BadInput(
                f"attack '{attack.name}' needs training behaviours: give --train NAME_OR_FILE, or "
                "train = '...' in the suite"
            )
        if attack.needs_train and len({row.harmful for row in train}) < 2:
            raise BadInput(
                f"attack '{attack.name}' needs harmful and harmless training behaviours, and "
                f"'{suite.train}' holds only {'harmful' if train[0].harmful else 'harmless'} ones"
            )
    defenses = load_defenses(suite.defense)
    for defense in defenses:
        if defense is not None and defense.needs_train and len({row.harmful for row in train}) < 2:
            raise BadInput(
                f"defence '{defense.name}' needs harmful and harmless training behaviours: give "
                "--train NAME_OR_FILE, or train = '...' in the suite"
            )
    if suite.samples and any(defenses):
        raise BadInput(
            "sampled answers are not available for defended models: leave out --samples or "
            "--defense"
        )
    refuse_overlap(train, rows, str(suite.train), suite.behaviors)
    rows, notes = distinct(rows, suite.behaviors)
    train, repeated = distinct(train, str(suite.train))
    notes += repeated

    attacked, answered = choose(rows, limit=suite.limit, harmless=suite.harmless)
    if not attacked:
        skipped = [attack.name for attack in attacks if attack.searches]
        attacks = tuple(attack for attack in attacks if not attack.searches)
        reason = f"'{suite.behaviors}' holds harmless behaviours only, and these attacks search"
        if not attacks:
            raise BadInput(
                f"{reason}: {', '.join(skipped)}; valid: attacks that do not search, such as direct"
            )
        if skipped:
            notes.append(f"skipped: {', '.join(skipped)} ({reason})")
    # Of the whole set and not of the chosen behaviours: a limit must not change the judge.
    stop_judge = default_judge([row for row in rows if row.harmful] or rows)
    judges, _ = split_judges(suite.judges or (stop_judge,))
    sampling = Sampling(suite.samples, suite.temperature, suite.top_p)
    if not sampling.samples and sampling != Sampling():
        raise BadInput(
            "temperature and top_p apply to sampled answers, and none are sampled: add --samples N"
        )
    settings = Settings(
        suite.max_new_tokens,
        suite.attempts,
        suite.stop,
        stop_judge,
        judges,
        suite.seconds,
        sampling,
    )
    shown = tuple(behavior.for_attack() for behavior in train)
    return Plan(
        suite, models, attacks, shown, attacked, answered, settings, tuple(notes), part, defenses
    )


def split_judges(specs: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The judges that judge within a run, and those that judge when it is over (`judging`).

    Raises:
        BadInput: as `load_judge`.
    """
    loaded = {spec: load_judge(spec) for spec in specs}
    within = tuple(
        spec for spec, judge in loaded.items() if judge.at_once and judge.identity == spec
    )
    return within, tuple(spec for spec in loaded if spec not in within)


def choose(
    rows: Sequence[Behavior], *, limit: int | None, harmless: bool
) -> tuple[tuple[Behavior, ...], tuple[Behavior, ...]]:
    """The behaviours to attack, and the harmless ones that attacks without search answer too.

    A set without harmful behaviours has nothing to attack and is answered only.
    """
    benign = [row for row in rows if not row.harmful]
    attacked = [row for row in rows if row.harmful][:limit]
    if not attacked:
        return (), tuple(benign[:limit])
    if not harmless:
        return tuple(attacked), ()
    wanted = {row.twin for row in attacked}
    twins = [row for row in benign if row.id in wanted]
    return tuple(attacked), tuple(twins or benign[:limit])


def distinct(rows: Sequence[Behavior], name: str) -> tuple[list[Behavior], list[str]]:
    """The first behaviour of each text, and a line for the user where that leaves some out."""
    first: dict[str, Behavior] = {}
    for row in rows:
        first.setdefault(normalise(row.text), row)
    again = len(rows) - len(first)
    kept = (
        f"'{name}': {again} of {len(rows)} behaviours repeat the text of another and are left out"
    )
    return list(first.values()), [kept] if again else []


def refuse_overlap(
    train: Sequence[Behavior], test: Sequence[Behavior], train_name: str, test_name: str
) -> None:
    """Make sure that nothing is tested on what was fitted on.

    Raises:
        BadInput: a training behaviour with the text of a test behaviour. Ids say nothing: files
            that number their rows have the same ones.
    """
    texts = {normalise(row.text) for row in test}
    shared = [row.id for row in train if normalise(row.text) in texts]
    if shared:
        raise BadInput(
            f"training set '{train_name}' overlaps the test set '{test_name}' in "
            f"{len(shared)} behaviour(s), the first is '{shared[0]}'; they must be disjoint"
        )
