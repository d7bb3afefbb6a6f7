"""Cells: one attack on one behaviour of one model with one seed, and what identifies it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from attacks.attack import Attack, Behavior
from attacks.registry import params_of
from benchmarks.harness.stances import Guard
from benchmarks.inputs.suites import attack_hash
from benchmarks.storage.records import SCHEMA, digest


class ModelId(NamedTuple):
    """Which model a record is about, as `attacks.core.model.Model` names it."""

    name: str
    revision: str
    dtype: str
    system: str | None


@dataclass(frozen=True)
class Sampling:
    """Answers drawn to the best candidate, besides the greedy one."""

    samples: int = 0
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Settings:
    """How a cell is run and judged."""

    max_new_tokens: int
    attempts: int
    stop: str
    stop_judge: str
    """Verifies candidates during the search."""
    judges: tuple[str, ...]
    seconds: float | None
    sampling: Sampling = Sampling()


@dataclass(frozen=True)
class Cell:
    """One attack on one behaviour with one seed, on the model at hand."""

    key: str
    attack: Attack
    behavior: Behavior
    seed: int
    artefact: str
    """Id of the fitted artefact, empty where the attack fits none; see `fitting.Fitted`."""
    guard: Guard | None = None
    """The defence around the model."""


@dataclass(frozen=True)
class Task:
    """What is run in one go: searches or answers, of one attack, artefact and defence."""

    cells: tuple[Cell, ...]
    together: int = 1
    """Searches that run at a time in one process, their passes joined."""

    @property
    def attack(self) -> Attack:
        """The attack of all its cells."""
        return self.cells[0].attack


def cell_key(
    model: ModelId,
    attack: Attack,
    artefact_hash: str,
    behavior: Behavior,
    seed: int,
    settings: Settings,
    openers: Sequence[str],
    guard: Guard | None = None,
) -> str:
    """Hash of everything that determines a cell's outcome, times apart.

    The stop judge and the openers it goes by decide on first success; `seconds` and `judges` are
    left out: a record stopped by a budget is superseded, and judgements have lines of their own.
    """
    generation = {
        "max_new_tokens": settings.max_new_tokens,
        "attempts": settings.attempts,
        "stop": settings.stop,
        "stop_judge": settings.stop_judge,
        "openers": list(openers),
        "schema": SCHEMA,
    }
    if settings.sampling.samples:
        generation["sampling"] = dataclasses.asdict(settings.sampling)
    under = {} if guard is None else {"defense": guard.facts()}
    return digest(
        {
            **under,
            "model": f"{model.name}@{model.revision}",
            "dtype": model.dtype,
            "system": model.system,
            "attack": attack.name,
            "params": params_of(attack),
            "artefact": artefact_hash,
            "behavior": dataclasses.asdict(behavior),
            "seed": seed,
            "generation": generation,
        }
    )


def artefact_id(model: ModelId, fitted: object, train: Sequence[Behavior], seed: int | None) -> str:
    """Hash of everything that determines an artefact; `fitted` is a JSON value: what is fitted."""
    return digest(
        {
            "model": f"{model.name}@{model.revision}",
            "dtype": model.dtype,
            "system": model.system,
            "fitted": fitted,
            "train": [dataclasses.asdict(behavior) for behavior in train],
            "seed": seed,
        }
    )


def cell_generator(attack: Attack, behavior_id: str, seed: int) -> torch.Generator:
    """The cell's own stream of random numbers, whatever else is run, and in which order."""
    return _generator(f"run {seed} {attack_hash(attack)} {behavior_id}")


def prepare_generator(fitted: str, revision: str, seed: int) -> torch.Generator:
    """The stream of random numbers for fitting something, "attack" or "survey", on a model.

    It is the same for all attacks, so that those that split the training prompts alike get one
    split: a direction that two of them look for is the same, unless one of them starts from a
    survey, which has its own stream.
    """
    return _generator(f"prepare {seed} {fitted} {revision}")


def sample_generator(key: str, index: int) -> torch.Generator:
    """The stream of random numbers of the cell's drawn answer `index`."""
    return _generator(f"sample {index} {key}")


def _generator(text: str) -> torch.Generator:
    # 8 bytes of the digest, less the sign bit: torch takes seeds up to 2**63 - 1 everywhere.
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(seed)
