"""What is fitted of a defence, once for each model, before the cells behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attacks.attack import Attack, Behavior
from attacks.core.artefact import EMPTY
from attacks.core.model import Model
from benchmarks.defenses.defense import Defense
from benchmarks.defenses.registry import params_of
from benchmarks.harness.artefacts import verdict_of
from benchmarks.harness.bench import model_id
from benchmarks.harness.cells import artefact_id, prepare_generator
from benchmarks.harness.checkpoints import Checkpoints
from benchmarks.harness.failures import CONTAINED, Failure, failure_of
from benchmarks.harness.fitting import Fitted, fit_attack, keep
from benchmarks.harness.stances import Guard, Stance, Views


def fit_defense(
    model: Model, stance: Stance, train: Sequence[Behavior], folders: Sequence[Path]
) -> tuple[Guard, Failure | None]:
    """Fits the defence's artefact or finds it; the first of `folders` has it afterwards.

    Returns:
        The defence as cells name it, and why it could not be fitted.

    Raises:
        BadInput: damaged artefact files.
    """
    defense = stance.defense
    if type(defense).fit is Defense.fit:
        return Guard(stance, "", EMPTY.hash, ""), None
    what = {"defense": defense.name, "params": params_of(defense)}
    identity = artefact_id(model_id(model), what, train, None)
    rng = prepare_generator("defense", model.revision, 0)
    try:
        made = keep(model, identity, folders, lambda: defense.fit(model, train, rng=rng))
    except CONTAINED as error:
        return Guard(stance, "", f"unfitted {identity}", ""), failure_of(error)
    return Guard(stance, identity, made.hash, verdict_of(made)), None


def fit_under(
    model: Model,
    attack: Attack,
    guard: Guard | None,
    train: Sequence[Behavior],
    seed: int,
    folders: Sequence[Path],
    checkpoints: Checkpoints | None,
) -> Fitted:
    """`fit_attack`, on the model as a defence changes it where the attack knows of that.

    Checks change nothing that an attack is fitted to.
    """
    if guard is None or not guard.stance.adaptive or not guard.stance.defense.changes:
        return fit_attack(model, attack, train, seed, folders, checkpoints)
    under = {key: value for key, value in guard.facts().items() if key != "adaptivity"}
    changed = Views(model, folders[0]).attacked(guard)
    return fit_attack(changed, attack, train, seed, folders, checkpoints, under=under)
