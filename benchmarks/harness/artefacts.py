"""Fitted artefacts on disk: ID.safetensors (tensors) beside ID.json (data, cost, hash)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialised

from attacks.attack import Artefact, Attack
from attacks.composed import Composed
from attacks.core.artefact import EMPTY
from attacks.core.errors import BadInput
from attacks.core.parsing import from_json
from benchmarks.common.files import write_whole
from benchmarks.common.lines import one_line
from benchmarks.storage.folders import bounded, contained


def save(folder: Path, identity: str, artefact: Artefact) -> None:
    """Writes the artefact; the JSON file comes last, so one that is there is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    if artefact.tensors:
        tensors = {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in artefact.tensors.items()
        }
        write_whole(folder / f"{identity}.safetensors", serialised(tensors))
    content = {
        "data": artefact.data,
        "tensors": sorted(artefact.tensors),
        "seconds": artefact.seconds,
        "hash": artefact.hash,
        **({"check": artefact.check} if artefact.check else {}),
    }
    write_whole(folder / f"{identity}.json", json.dumps(content, indent=1).encode())


def load(folder: Path, identity: str) -> Artefact | None:
    """The artefact, its tensors on the CPU, or None where there is none.

    Raises:
        BadInput: damaged files, larger ones than can be, a link that leads out of the folder, or
            an id that does.
    """
    path, tensors_path = (folder / f"{identity}{kind}" for kind in (".json", ".safetensors"))
    if path.parent != folder:
        raise BadInput(f"artefact '{identity}' in '{folder}'; valid: the name of a file")
    if not path.is_file():
        return None
    contained(folder)
    for there in filter(Path.is_file, (path, tensors_path)):
        bounded(there)
    try:
        content = from_json(path.read_text(encoding="utf-8"))
        tensors = load_file(tensors_path) if content["tensors"] else {}
        seconds, check = float(content["seconds"]), dict(content.get("check", {}))
        artefact = Artefact(tensors, content["data"], seconds, check)
        intact = artefact.hash == content["hash"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        intact = False
    if not intact:
        raise BadInput(f"{path}: damaged artefact; delete it and it will be fitted again")
    return artefact


def find(identity: str, folders: Iterable[Path]) -> Artefact | None:
    """The artefact from the first folder that has it.

    Raises:
        BadInput: as `load`.
    """
    return next((found for folder in folders if (found := load(folder, identity))), None)


def artefact_of(folder: Path, attack: Attack, identity: str) -> Artefact:
    """The artefact of this id (see `Record.artefact`), joined where it has parts.

    Raises:
        BadInput: damaged files.
    """
    if not identity:
        return EMPTY
    found = [load(folder, at) if at else None for at in identity.split("+")]
    fitted = [artefact or EMPTY for artefact in found]
    return attack.join(fitted) if isinstance(attack, Composed) else fitted[0]


def verdict_of(artefact: Artefact) -> str:
    """What the check of an artefact says, in one line (`Record.verdict`)."""
    check = artefact.check
    if not check:
        return ""
    notes = check.get("notes", [])
    said = [check["verdict"], "; ".join([*check["faults"], *notes])]
    return one_line(": ".join(part for part in said if part))
