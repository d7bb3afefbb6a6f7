"""Model and tokenizer from a folder or the Hub: safetensors only, no remote code."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from attacks.core.errors import BadInput

_DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}

_DECIDING = (".json", ".jinja", ".safetensors", ".model")


def load_parts(
    name_or_path: str, *, device: str, dtype: str, auto: Any = AutoModelForCausalLM
) -> tuple[Any, Any, str]:
    """The model on its device, the tokenizer, and the revision; see `Model.load`.

    `auto` is the class of transformers that knows models of the wanted kind.

    Raises:
        BadInput: one line that says what is missing and what to do.
    """
    place = _device(device)
    if dtype != "auto" and dtype not in _DTYPES:
        raise BadInput(f"unknown dtype '{dtype}'; valid: auto, {', '.join(_DTYPES)}")
    config, tokenizer = load_tokenizer(name_or_path)
    source, options = _source(name_or_path)
    own = torch.float32 if place.type == "cpu" else config.dtype or torch.float32
    if place.type == "cpu":
        # Grouped kernels are for accelerators; here they are slower, and not for float64.
        options["experts_implementation"] = "eager"
    with _explaining(name_or_path):
        hf: Any = auto.from_pretrained(
            source, dtype=_DTYPES.get(dtype, own), use_safetensors=True, **options
        )
    return hf.to(place), tokenizer, revision_of(source, config)


def revision_of(source: str, config: Any) -> str:
    """What tells one state of a model from another: a folder's content, or the Hub's commit."""
    folder = Path(source)
    return content_hash(folder) if folder.is_dir() else str(getattr(config, "_commit_hash", ""))


def load_tokenizer(name_or_path: str) -> tuple[Any, Any]:
    """Configuration and tokenizer: enough to tell whether a model can be attacked at all.

    Raises:
        BadInput: as `load_parts`.
    """
    source, options = _source(name_or_path)
    with _explaining(name_or_path):
        config = AutoConfig.from_pretrained(source, **options)
        return config, AutoTokenizer.from_pretrained(source, **options)


def _source(name_or_path: str) -> tuple[str, dict[str, Any]]:
    """Folder or Hub id, and the options with which to load from it."""
    source, revision = name_or_path, "main"
    if not Path(name_or_path).is_dir():
        source, _, wanted = name_or_path.partition("@")
        revision = wanted or revision
        if "/" not in source:
            raise BadInput(_unknown(name_or_path))
    return source, {"revision": revision, "trust_remote_code": False}


def beside(name: str, source: str) -> str:
    """`name`, or the folder of that name next to the folder `source` where there is one."""
    near = Path(source).parent / name
    return str(near) if Path(source).is_dir() and near.is_dir() else name


@contextmanager
def _explaining(name: str) -> Iterator[None]:
    """Quietly, and with one line for whatever goes wrong."""
    try:
        with _quiet():
            yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BadInput(_explain(name, error)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars for weights, and without the Hub client's lines about its retries."""
    bar: Any = transformers_logging
    hub = logging.getLogger("huggingface_hub")
    level, bars = hub.level, bar.is_progress_bar_enabled()
    hub.setLevel(logging.ERROR)
    bar.disable_progress_bar()
    try:
        yield
    finally:
        hub.setLevel(level)
        if bars:
            bar.enable_progress_bar()


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device '{device}' is not available here; try cpu") from error
    return place


def content_hash(folder: Path) -> str:
    """Hex digest of the files that decide what a model in a folder does."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _DECIDING and path.name != "card.json":
            digest.update(path.name.encode())
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _explain(name: str, error: Exception) -> str:
    """One line on why a model does not load, and what to do."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    if Path(name).is_dir():
        return f"model folder '{name}' does not load: {text[:200]}"
    if "gated" in text.lower() or kind == "GatedRepoError":
        return (
            f"model '{name}' is gated on the Hub: accept its terms there and log in (hf auth login)"
        )
    if "safetensors" in text:
        return f"model '{name}' has no safetensors weights, and no other format is loaded"
    return _unknown(name)


def _unknown(name: str) -> str:
    return (
        f"unknown model '{name}': neither shipped, nor a folder, nor a Hub id (owner/name) that "
        "can be reached or is cached here; `reroute models` lists the shipped ones"
    )
