"""What is fitted once for each model, before its cells: artefacts and refusal openers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from attacks.attack import Artefact, Attack, Behavior
from attacks.core.artefact import EMPTY
from attacks.core.model import Model
from attacks.core.refusal import GENERAL_OPENERS, learn_openers
from attacks.core.survey import LayerReport, Survey, Surveyor, survey
from attacks.registry import params_of
from benchmarks import artefacts
from benchmarks.bench import Failure, failure_of, model_id
from benchmarks.cells import artefact_id, prepare_generator
from benchmarks.suites import attack_hash
from benchmarks.timing import Clock


class Fitted(NamedTuple):
    """An attack's artefact on a model and seed, by reference."""

    identity: str
    """Id of its files; empty where the attack fits nothing."""
    hash: str
    """Of its content."""
    failure: Failure | None = None


def fit_attack(
    model: Model, attack: Attack, train: Sequence[Behavior], seed: int, folders: Sequence[Path]
) -> Fitted:
    """Fits the attack's artefact or finds it; the first of `folders` has it afterwards.

    Raises:
        BadInput: damaged artefact files.
    """
    if type(attack).prepare is Attack.prepare:
        return Fitted("", EMPTY.hash)
    fitted = {"attack": attack.name, "params": params_of(attack)}
    identity = artefact_id(model_id(model), fitted, train, seed)
    if (found := _found(identity, folders)) is not None:
        return Fitted(identity, found.hash)
    try:
        made = _prepared(model, attack, train, seed, folders)
        if made.hash == EMPTY.hash:
            return Fitted("", EMPTY.hash)
        artefacts.save(folders[0], identity, made)
    except Exception as error:
        # A key of its own: the cells' keys cannot be known without the artefact.
        return Fitted(identity, f"unfitted {identity}", failure_of(error))
    return Fitted(identity, made.hash)


def _prepared(
    model: Model, attack: Attack, train: Sequence[Behavior], seed: int, folders: Sequence[Path]
) -> Artefact:
    """What the attack fits; several attacks that start from a survey pay for one between them."""
    if not isinstance(attack, Surveyor):
        rng = prepare_generator(attack_hash(attack), model.revision, seed)
        return _timed(model, lambda: attack.prepare(model, train, rng=rng))
    found, seconds = fit_survey(model, train, seed, folders)
    made = _timed(model, lambda: attack.fitted(model, found, train))
    # Each is charged the whole of it, as if it were run alone.
    return dataclasses.replace(made, seconds=made.seconds + seconds)


def fit_survey(
    model: Model, train: Sequence[Behavior], seed: int, folders: Sequence[Path]
) -> tuple[Survey, float]:
    """The survey of the model, made or found, and what it cost in seconds.

    Raises:
        BadInput: damaged artefact files, or as `survey`.
    """

    def make() -> Artefact:
        found = survey(model, train, rng=prepare_generator("survey", model.revision, seed))
        return Artefact(found.tensors, found.data)

    kept = keep(model, artefact_id(model_id(model), "survey", train, seed), folders, make)
    reports = tuple(LayerReport(**report) for report in kept.data["survey"])
    return Survey(kept.tensors, reports, int(kept.data["ablation_layer"])), kept.seconds


def fit_openers(
    model: Model, train: Sequence[Behavior], folders: Sequence[Path]
) -> tuple[str, ...]:
    """The refusal openers of the model, learned from its answers to the training behaviours."""
    if not train:
        return GENERAL_OPENERS
    identity = artefact_id(model_id(model), "refusal openers", train, None)
    kept = keep(
        model, identity, folders, lambda: Artefact(data={"openers": [*learn_openers(model, train)]})
    )
    return tuple(kept.data["openers"])


def keep(
    model: Model, identity: str, folders: Sequence[Path], make: Callable[[], Artefact]
) -> Artefact:
    """The artefact of this id, made where no folder has it; the first has it afterwards.

    Raises:
        BadInput: damaged artefact files.
    """
    found = _found(identity, folders)
    if found is None:
        found = _timed(model, make)
        artefacts.save(folders[0], identity, found)
    return found


def _found(identity: str, folders: Sequence[Path]) -> Artefact | None:
    found = artefacts.find(identity, folders)
    if found is not None and artefacts.load(folders[0], identity) is None:
        artefacts.save(folders[0], identity, found)
    return found


def _timed(model: Model, make: Callable[[], Artefact]) -> Artefact:
    clock = Clock(model.synchronise)
    with clock.phase("prepare"):
        made = make()
    # As it comes back from a file, so that a later run has the very same value.
    data = json.loads(json.dumps(dict(made.data)))
    return dataclasses.replace(made, data=data, seconds=clock.spent("prepare"))
