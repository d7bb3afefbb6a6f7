"""Regenerated answers: from the string alone, or with the artefact that a record names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from attacks.attack import Artefact, Attack
from attacks.composed import Composed
from attacks.core.alike import same
from attacks.core.artefact import EMPTY
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.model import Model, PlainModel
from attacks.core.prompt import Messages
from attacks.core.weights import Change, WeightEdit
from attacks.registry import load
from benchmarks.defenses.registry import rebuilt
from benchmarks.harness import artefacts
from benchmarks.harness.artefacts import artefact_of
from benchmarks.harness.cells import ModelId, artefact_id, cell_generator
from benchmarks.harness.failures import failure_of
from benchmarks.judges.context import Context
from benchmarks.storage.records import Record
from benchmarks.verify.claims import Claim

#: Answer length of records that do not say: that of suites which set none.
TOKENS = 64


@dataclass(frozen=True)
class Anew:
    """A regenerated answer, or why there is none."""

    answer: str = ""
    reason: str = ""


@dataclass(frozen=True)
class How:
    """What records from before it was written down do not say."""

    system: str | None
    max_new_tokens: int
    train: tuple[Behavior, ...]
    """What artefacts were fitted on."""

    def tokens(self, record: Record) -> int:
        """The longest answer."""
        return record.max_new_tokens or self.max_new_tokens


class Changed(NamedTuple):
    """A claim, and what its attack does to the model."""

    claim: Claim
    changes: tuple[Change, ...]


Answer = Callable[[list[Messages]], list[str]]


def from_strings(
    model: PlainModel, claims: Sequence[Claim], how: How, batch: int
) -> Iterator[Anew]:
    """What the model says to the recorded strings, claim by claim."""
    made: dict[tuple[Messages, int], Anew] = {}
    fresh: dict[tuple[bool, int], list[Messages]] = {}
    for claim in claims:
        asked, tokens = claim.asked(how.system), how.tokens(claim.record)
        group = fresh.setdefault((bool(claim.opening), tokens), [])
        if asked not in group:
            group.append(asked)
    for (_, tokens), group in fresh.items():

        def answer(asked: list[Messages], tokens: int = tokens) -> list[str]:
            return model.answers(asked, max_new_tokens=tokens)

        for start in range(0, len(group), batch):
            chunk = group[start : start + batch]
            for asked, one in zip(chunk, _tried(answer, chunk), strict=True):
                made[asked, tokens] = one
    for claim in claims:
        yield made[claim.asked(how.system), how.tokens(claim.record)]


def changes_of(
    model: Model, claims: Sequence[Claim], how: How, *, folder: Path, context: Context
) -> Iterator[tuple[Change, ...] | Anew]:
    """What the recorded attacks do to the model, claim by claim, or why that is not known."""
    last: tuple[Change, ...] = ()
    for claim in claims:
        try:
            own = _changes(model, claim.record, how, folder, context)
        except Exception as error:
            yield Anew(reason=failure_of(error).reason)
            continue
        # Equal ones are kept once: they are as large as the directions of all layers.
        last = last if same(last, own) else own
        yield last


def is_merged(changes: Sequence[Change]) -> bool:
    """Whether that is a change of weights and of nothing else."""
    return bool(changes) and all(isinstance(change, WeightEdit) for change in changes)


def with_changes(
    model: Model | PlainModel, claims: Sequence[Changed], how: How, batch: int
) -> Iterator[Anew]:
    """What the model says as it is changed, claim by claim.

    Args:
        model: a plain one takes weight edits only (`is_merged`).
        claims: each with its changes.
        how: see `How`.
        batch: most answers that are made together; their changes are the same.
    """
    for changes, tokens, group in _alike(claims, how):

        def answer(
            asked: list[Messages], changes: tuple[Change, ...] = changes, tokens: int = tokens
        ) -> list[str]:
            if isinstance(model, Model):
                return model.generate(asked, max_new_tokens=tokens, interventions=changes)
            edits = [change for change in changes if isinstance(change, WeightEdit)]
            return model.answers(asked, max_new_tokens=tokens, edits=edits)

        for start in range(0, len(group), batch):
            chunk = group[start : start + batch]
            yield from _tried(answer, [claim.asked(how.system) for claim in chunk])


def _alike(
    claims: Sequence[Changed], how: How
) -> Iterator[tuple[tuple[Change, ...], int, list[Claim]]]:
    """Changes, longest answer, and claims in a row that share both and are opened or are not."""
    group: list[Claim] = []
    setting: tuple[tuple[Change, ...], int, bool] = ((), 0, False)
    for claim, changes in claims:
        own = (changes, how.tokens(claim.record), bool(claim.opening))
        if group and not same(setting, own):
            yield (*setting[:2], group)
            group = []
        setting = own
        group.append(claim)
    if group:
        yield (*setting[:2], group)


def behind_defenses(
    model: Model,
    claims: Sequence[Claim],
    how: How,
    *,
    folder: Path,
    context: Context,
) -> Iterator[Anew]:
    """What the model says behind the recorded defences, one by one: a check sees each alone."""
    views: dict[tuple[str, str], Model] = {}
    for claim in claims:
        record = claim.record
        at = (record.defense_hash, record.defense_artefact)
        try:
            if at not in views:
                views[at] = _defended(model, record, folder)
            string = record.threat_model in ("prompt", "prefill")
            changes = () if string else _changes(views[at], record, how, folder, context)
            (said,) = views[at].generate(
                [claim.asked(how.system)],
                max_new_tokens=how.tokens(record),
                interventions=changes,
            )
            yield Anew(str(said))
        except Exception as error:
            yield Anew(reason=failure_of(error).reason)


def _defended(model: Model, record: Record, folder: Path) -> Model:
    """The model behind the record's defence, with what it was fitted then.

    Raises:
        BadInput: a defence that is not installed, or an artefact that is not kept.
    """
    kept, identity = folder / "artefacts", record.defense_artefact
    fitted = artefacts.load(kept, identity) if identity else EMPTY
    if fitted is None:
        raise BadInput(f"the artefact {identity} of its defence is not in '{kept}'")
    return rebuilt(record.defense, record.defense_params).around(model, fitted)


def _tried(answer: Answer, asked: list[Messages]) -> list[Anew]:
    """Answers to a batch; where that fails each is asked alone."""
    try:
        return [Anew(text) for text in answer(asked)]
    except Exception as error:
        reason = failure_of(error).reason
    if len(asked) == 1:
        return [Anew(reason=reason)]
    return [one for each in asked for one in _tried(answer, [each])]


def _changes(
    model: Model, record: Record, how: How, folder: Path, context: Context
) -> tuple[Change, ...]:
    """What the attack of a record does to the model, by its artefact.

    Raises:
        BadInput: an attack that is not installed, an artefact that is not kept, a change that was
            searched for.
    """
    attack = load(record.attack, **record.params)
    if isinstance(attack, Composed) and attack.searches:
        # What was searched for is the prompt, which is at hand.
        attack = Composed((load("direct"), *attack.parts[1:]))
        named = record.artefact.partition("+")[2]
        artefact = _artefact(attack, dataclasses.replace(record, artefact=f"+{named}"), how, folder)
    elif attack.searches:
        raise BadInput(f"what '{record.attack}' changes was found by a search and is not stored")
    else:
        artefact = _artefact(attack, record, how, folder)
    behavior = context.behavior(record).for_attack()
    rng = cell_generator(attack, behavior.id, record.seed)
    try:
        step = next(iter(attack.run(model, behavior, artefact=artefact, rng=rng)))
    except KeyError as error:
        raise BadInput(
            f"the record names no artefact, and '{record.attack}' needs one; give the training "
            "set of the run with --train"
        ) from error
    return step.interventions


def _artefact(attack: Attack, record: Record, how: How, folder: Path) -> Artefact:
    kept, identity = folder / "artefacts", record.artefact
    if not identity and how.train and not isinstance(attack, Composed):
        # What the run must have called it, if it kept one.
        model = ModelId(record.model, record.revision, record.dtype, record.system or how.system)
        fitted = {"attack": record.attack, "params": dict(record.params)}
        wanted = artefact_id(model, fitted, how.train, record.seed)
        identity = wanted if (kept / f"{wanted}.json").is_file() else ""
    for part in identity.split("+"):
        if part and not (kept / f"{part}.json").is_file():
            raise BadInput(f"its artefact {part} is not in '{kept}'")
    return artefact_of(kept, attack, identity)
