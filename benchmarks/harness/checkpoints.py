"""Checkpoints of what is running: one file each, tensors with JSON in the header of safetensors.

A checkpoint is an insurance. Whatever is wrong with one, it is left alone and its cell starts over;
what cannot be written costs the insurance and not the cell.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from attacks.attack import State
from attacks.core.parsing import from_json
from benchmarks.common.files import UNFINISHED, write_whole
from benchmarks.common.versions import versions
from benchmarks.harness.timing import Stopwatch

#: Seconds between two checkpoints of a cell.
EVERY = 10.0

#: A checkpoint is due at the earliest after this many times of what the last one took.
SPARING = 100

#: Bytes above which a file is no checkpoint.
LARGEST = 2**30

SUFFIX = ".safetensors"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where something stands: the `Step.state` that it goes on from, and JSON values beside it."""

    state: State
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run, by the key of the cell or the id of the artefact in the making."""

    folder: Path
    every: float = EVERY
    """Seconds between two of them; 0: after each step."""

    def keeper(self, key: str) -> Keeper:
        """Keeps the checkpoint of what begins now."""
        return Keeper(self, key)

    def path(self, key: str) -> Path:
        """Its file."""
        return self.folder / f"{key}{SUFFIX}"

    def load(self, key: str, device: torch.device) -> Checkpoint | None:
        """The checkpoint, its tensors where they were or on `device`; None without a sound one.

        Versions other than those that it was made with do not go on from it: what they compute may
        differ in the last digits.
        """
        return load(self.path(key), device)

    def remove(self, key: str) -> None:
        """What is finished needs none."""
        _drop(self.path(key))

    def tidy(self, finished: Collection[str]) -> list[str]:
        """Removes what kills have left; a line for each damaged file.

        Args:
            finished: keys of cells that have their record.
        """
        notes = []
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            if path.stem in finished:
                _drop(path)
            elif load(path, torch.device("cpu")) is None:
                _drop(path)
                notes.append(f"{path}: damaged, or written by other versions; its cell starts over")
        for path in self.folder.glob(f".*{UNFINISHED}"):
            _drop(path)
        return notes


class Keeper:
    """Writes the checkpoint of one cell from time to time, at a hundredth of its time at most."""

    def __init__(self, checkpoints: Checkpoints, key: str) -> None:
        self._checkpoints = checkpoints
        self._key = key
        self._wait = checkpoints.every
        self._since = Stopwatch()

    @property
    def due(self) -> bool:
        """Whether the last one is old enough."""
        return self._since.elapsed >= self._wait

    def load(self, device: torch.device) -> Checkpoint | None:
        """What there is to go on from."""
        return self._checkpoints.load(self._key, device)

    def save(self, checkpoint: Checkpoint) -> None:
        """Replaces the last one, if this one can be written."""
        writing, path = Stopwatch(), self._checkpoints.path(self._key)
        try:
            data = encode(checkpoint)
            if len(data) <= LARGEST:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, data)
        except (OSError, TypeError, ValueError) as error:
            _log.warning("no checkpoint of %s: %s", self._key, error)
        if self._checkpoints.every:
            self._wait = max(self._checkpoints.every, SPARING * writing.elapsed)
        self._since = Stopwatch()

    def remove(self) -> None:
        """What is finished needs none."""
        self._checkpoints.remove(self._key)


def _drop(path: Path) -> None:
    """Removes a file, if that can be done."""
    with suppress(OSError):
        path.unlink()


def encode(checkpoint: Checkpoint) -> bytes:
    """The content of a file.

    Raises:
        TypeError: a state with something else than tensors and numbers in it.
        ValueError: `data` that is not JSON.
    """
    tensors, numbers, placed = {}, {}, []
    for name, value in checkpoint.state.items():
        if isinstance(value, Tensor):
            # Cloned, for safetensors refuses tensors that share memory.
            tensors[name] = value.detach().cpu().contiguous().clone()
            placed += [] if value.device.type == "cpu" else [name]
        elif isinstance(value, int | float):
            numbers[name] = value
        else:
            kind = type(value).__name__
            raise TypeError(f"the attack's state holds a {kind}, '{name}'; valid: tensors, numbers")
    content = {
        "numbers": numbers,
        "placed": placed,
        "data": checkpoint.data,
        "versions": versions(),
    }
    text = json.dumps(content)
    data: bytes = save(tensors, metadata={"content": text, "hash": _hash(text, tensors)})
    return data


def load(path: Path, device: torch.device) -> Checkpoint | None:
    """See `Checkpoints.load`."""
    try:
        if path.stat().st_size > LARGEST:
            return None
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        content = from_json(metadata["content"])
        if metadata["hash"] != _hash(metadata["content"], tensors):
            return None
        if content["versions"] != versions():
            return None
        tensors |= {name: tensors[name].to(device) for name in content["placed"]}
        return Checkpoint({**tensors, **content["numbers"]}, content["data"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def _hash(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Hex digest of everything, each value to the bit."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
