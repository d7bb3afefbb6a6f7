"""What is fitted once for each model, before its cells: artefacts and refusal openers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from attacks.attack import Artefact, Attack, Behavior
from attacks.composed import Composed
from attacks.core.analysis.survey import Survey, Surveyor, survey
from attacks.core.artefact import EMPTY
from attacks.core.model import Model
from attacks.core.refusals.coherence import Coherence, fit_coherence
from attacks.core.refusals.openers import GENERAL_OPENERS, learn_openers
from attacks.core.refusals.unknown import unknown_refusals
from attacks.registry import params_of
from benchmarks.harness import artefacts
from benchmarks.harness.artefacts import verdict_of
from benchmarks.harness.bench import model_id
from benchmarks.harness.cells import artefact_id, prepare_generator
from benchmarks.harness.checkpoints import Checkpoint, Checkpoints, Keeper
from benchmarks.harness.failures import CONTAINED, Failure, failure_of
from benchmarks.harness.timing import Clock
from benchmarks.inputs.suites import attack_hash


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
    model: Model,
    attack: Attack,
    train: Sequence[Behavior],
    seed: int,
    folders: Sequence[Path],
    checkpoints: Checkpoints | None = None,
    *,
    under: Any = None,
) -> Fitted:
    """Fits the attack's artefact or finds it; the first of `folders` has it afterwards.

    A fit that was interrupted goes on from its checkpoint, where the attack keeps one. Each part of
    a combination keeps files of its own, and takes them from a run of that part alone where nothing
    to its right changes the model. `under` is a JSON value: the defence that has changed `model`.

    Raises:
        BadInput: damaged artefact files.
    """
    if isinstance(attack, Composed):
        return _fit_parts(model, attack, train, seed, folders, checkpoints, under=under)
    return _fit(model, attack, train, seed, folders, checkpoints, under=under)


def _fit_parts(
    model: Model,
    attack: Composed,
    train: Sequence[Behavior],
    seed: int,
    folders: Sequence[Path],
    checkpoints: Checkpoints | None,
    *,
    under: Any,
) -> Fitted:
    rng = prepare_generator("attack", model.revision, seed)
    identities, made = [""] * len(attack.parts), [EMPTY] * len(attack.parts)
    for at in reversed(range(len(attack.parts))):
        try:
            changed = attack.stage(at, model, train, attack.join(made), rng=rng)
        except CONTAINED as error:
            return Fitted("", f"unfitted {attack_hash(attack)}", failure_of(error))
        behind = attack.parts[at + 1 :] if changed is not model else ()
        part = attack.parts[at]
        fitted = _fit(changed, part, train, seed, folders, checkpoints, behind=behind, under=under)
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
    checkpoints: Checkpoints | None,
    *,
    behind: Sequence[Attack] = (),
    under: Any = None,
) -> Fitted:
    """Of a single attack; `behind` are those that have changed `model`, `under` the defence."""
    if type(attack).prepare is Attack.prepare:
        return Fitted("", EMPTY.hash)
    what: dict[str, Any] = {"attack": attack.name, "params": params_of(attack)}
    if behind:
        what["on"] = [{"attack": part.name, "params": params_of(part)} for part in behind]
    if under is not None:
        what["under"] = under
    identity = artefact_id(model_id(model), what, train, seed)
    if (found := _found(identity, folders)) is not None:
        return Fitted(identity, found.hash, verdict=verdict_of(found))
    keeper = checkpoints.keeper(identity) if checkpoints else None
    try:
        # The survey that is kept is that of the model as it is.
        if isinstance(attack, Surveyor) and not behind and under is None:
            made = _surveyed(model, attack, train, seed, folders)
        else:
            made = _in_steps(model, attack, train, seed, keeper)
        if made.hash != EMPTY.hash:
            artefacts.save(folders[0], identity, made)
    except CONTAINED as error:
        # A key of its own: the cells' keys cannot be known without the artefact.
        fitted = Fitted(identity, f"unfitted {identity}", failure_of(error))
    else:
        empty = made.hash == EMPTY.hash
        fitted = Fitted("" if empty else identity, made.hash, verdict=verdict_of(made))
    if keeper is not None:
        keeper.remove()
    return fitted


def _in_steps(
    model: Model, attack: Attack, train: Sequence[Behavior], seed: int, keeper: Keeper | None
) -> Artefact:
    """What the attack fits, from its checkpoint on where there is one."""
    clock = Clock(model.synchronise)
    saved = keeper.load(model.device) if keeper else None
    if saved is not None:
        clock.charge("prepare", float(saved.data["seconds"]))
    rng = prepare_generator("attack", model.revision, seed)
    state = saved.state if saved else None
    steps = attack.fitting(model, train, rng=rng, state=state)
    while True:
        try:
            with clock.phase("prepare"):
                step = next(steps, None)
        except KeyboardInterrupt:
            if keeper is not None and state:
                keeper.save(Checkpoint(state, {"seconds": clock.spent("prepare")}))
            raise
        if step is None:
            raise RuntimeError("the attack fitted nothing")
        if isinstance(step, Artefact):
            return _settled(step, clock)
        state = step
        if keeper is not None and keeper.due:
            keeper.save(Checkpoint(state, {"seconds": clock.spent("prepare")}))


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


def fit_unknown(
    model: Model,
    train: Sequence[Behavior],
    openers: Sequence[str],
    coherence: Coherence | None,
    folders: Sequence[Path],
) -> float:
    """The share of refusals that the openers do not tell (`unknown_refusals`)."""
    if not train:
        return 0.0
    identity = artefact_id(model_id(model), "unknown refusals", train, None)
    kept = keep(
        model,
        identity,
        folders,
        lambda: Artefact(data={"unknown": unknown_refusals(model, train, openers, coherence)}),
    )
    return float(kept.data["unknown"])


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
    return _settled(made, clock)


def _settled(made: Artefact, clock: Clock) -> Artefact:
    """With what it took."""
    # As it comes back from a file, so that a later run has the very same value.
    data = json.loads(json.dumps(dict(made.data)))
    return dataclasses.replace(made, data=data, seconds=clock.spent("prepare"))
