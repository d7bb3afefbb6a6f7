"""What is fitted once for each model, before its cells: artefacts and refusal openers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from attacks.attack import Artefact, Attack, Behavior
from attacks.composed import Composed
from attacks.core.artefact import EMPTY
from attacks.core.coherence import Coherence, fit_coherence
from attacks.core.model import Model
from attacks.core.refusal import GENERAL_OPENERS, learn_openers
from attacks.core.survey import Survey, Surveyor, survey
from attacks.registry import params_of
from benchmarks import artefacts
from benchmarks.bench import model_id, verdict_of
from benchmarks.cells import artefact_id, prepare_generator
from benchmarks.failures import Failure, failure_of
from benchmarks.suites import attack_hash
from benchmarks.timing import Clock


class Fitted(NamedTuple):
    """An attack's artefact on a model and seed, by reference."""

    identity: str
    """Id of its files; empty where the attack fits nothing. Those of a combination's parts, joined
    by `+`."""
    hash: str
    """Of its content."""
    failure: Failure | None = None
    verdict: str = ""
    """What a check on held-out prompts says of it (`Record.verdict`)."""


def fit_attack(
    model: Model, attack: Attack, train: Sequence[Behavior], seed: int, folders: Sequence[Path]
) -> Fitted:
    """Fits the attack's artefact or finds it; the first of `folders` has it afterwards.

    Each part of a combination keeps files of its own, and takes them from a run of that part alone
    where nothing to its right changes the model.

    Raises:
        BadInput: damaged artefact files.
    """
    if isinstance(attack, Composed):
        return _fit_parts(model, attack, train, seed, folders)
    return _fit(model, attack, train, seed, folders)


def _fit_parts(
    model: Model, attack: Composed, train: Sequence[Behavior], seed: int, folders: Sequence[Path]
) -> Fitted:
    rng = prepare_generator("attack", model.revision, seed)
    identities, made = [""] * len(attack.parts), [EMPTY] * len(attack.parts)
    for at in reversed(range(len(attack.parts))):
        try:
            changed = attack.stage(at, model, train, attack.join(made), rng=rng)
        except Exception as error:
            return Fitted("", f"unfitted {attack_hash(attack)}", failure_of(error))
        behind = attack.parts[at + 1 :] if changed is not model else ()
        fitted = _fit(changed, attack.parts[at], train, seed, folders, behind=behind)
        if fitted.failure is not None:
            return fitted
        if fitted.identity:
            identities[at] = fitted.identity
            made[at] = artefacts.load(folders[0], fitted.identity) or EMPTY
    joined = attack.join(made)
    identity = "+".join(identities) if any(identities) else ""
    return Fitted(identity, joined.hash, verdict=verdict_of(joined))


def _fit(
    model: Model,
    attack: Attack,
    train: Sequence[Behavior],
    seed: int,
    folders: Sequence[Path],
    *,
    behind: Sequence[Attack] = (),
) -> Fitted:
    """Of a single attack; `behind` are those that have changed `model`."""
    if type(attack).prepare is Attack.prepare:
        return Fitted("", EMPTY.hash)
    fitted: dict[str, Any] = {"attack": attack.name, "params": params_of(attack)}
    if behind:
        fitted["on"] = [{"attack": part.name, "params": params_of(part)} for part in behind]
    identity = artefact_id(model_id(model), fitted, train, seed)
    if (found := _found(identity, folders)) is not None:
        return Fitted(identity, found.hash, verdict=verdict_of(found))
    try:
        # The survey that is kept is that of the model as it is.
        if isinstance(attack, Surveyor) and not behind:
            made = _surveyed(model, attack, train, seed, folders)
        else:
            rng = prepare_generator("attack", model.revision, seed)
            made = _timed(model, lambda: attack.prepare(model, train, rng=rng))
        if made.hash == EMPTY.hash:
            return Fitted("", EMPTY.hash)
        artefacts.save(folders[0], identity, made)
    except Exception as error:
        # A key of its own: the cells' keys cannot be known without the artefact.
        return Fitted(identity, f"unfitted {identity}", failure_of(error))
    return Fitted(identity, made.hash, verdict=verdict_of(made))


def _surveyed(
    model: Model, attack: Surveyor, train: Sequence[Behavior], seed: int, folders: Sequence[Path]
) -> Artefact:
    """What an attack that starts from a survey fits; several such attacks share one."""
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
        rng = prepare_generator("survey", model.revision, seed)
        return survey(model, train, rng=rng).artefact

    kept = keep(model, artefact_id(model_id(model), "survey", train, seed), folders, make)
    return Survey.of(kept), kept.seconds


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


def fit_coherent(
    model: Model, train: Sequence[Behavior], folders: Sequence[Path]
) -> Coherence | None:
    """What a coherent answer is for this model, learned from its own (`fit_coherence`)."""
    if not train:
        return None

    def make() -> Artefact:
        found = fit_coherence(model, train)
        return Artefact(data={"coherence": found.data if found else None})

    kept = keep(model, artefact_id(model_id(model), "coherence", train, None), folders, make)
    return Coherence(**kept.data["coherence"]) if kept.data["coherence"] else None


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
