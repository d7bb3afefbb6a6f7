"""What a model's name stands for: a folder, a Hub id, a GGUF file in either, or a PEFT adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.core.errors import BadInput
from attacks.core.parsing import from_json

GGUF = ".gguf"
_ADAPTER = "adapter_config.json"
_DECIDING = (".json", ".jinja", ".safetensors", ".model")


@dataclass(frozen=True)
class Source:
    """Where weights and tokenizer come from."""

    name: str
    """As it was given, for messages."""
    place: str
    """Folder or Hub id."""
    revision: str = "main"
    gguf: str = ""
    """File in `place` that holds weights and tokenizer, if it is a GGUF file."""
    base: Source | None = None
    """What an adapter is put on; `place` is then its folder."""

    @property
    def options(self) -> dict[str, Any]:
        """How transformers loads from `place`: at this revision, and never remote code."""
        file = {"gguf_file": self.gguf} if self.gguf else {}
        return {"revision": self.revision, "trust_remote_code": False, **file}

    @property
    def folder(self) -> Path | None:
        """The folder, or None for a Hub id."""
        path = Path(self.place)
        return path if path.is_dir() else None


def find_source(name: str) -> Source:
    """What `name` stands for.

    Args:
        name: a folder; a Hub id `owner/name`, optionally with `@revision`; a GGUF file; either of
            the former with `:file.gguf`; or a folder or Hub id with a PEFT adapter, whose base is
            found by its configuration: any of the former, or a folder beside the adapter's.

    Raises:
        BadInput: nothing by that name; an adapter without safetensors weights or base.
    """
    place, gguf = name, ""
    if name.lower().endswith(GGUF) and not Path(name).is_dir():
        path = Path(name)
        place, gguf = (str(path.parent), path.name) if path.is_file() else _split(name)
    revision = "main"
    if not Path(place).is_dir():
        place, _, wanted = place.partition("@")
        revision = wanted or revision
        if "/" not in place:
            raise BadInput(unknown(name))
    source = Source(name, place, revision, gguf)
    return source if gguf else _with_base(source)


def _split(name: str) -> tuple[str, str]:
    """`folder:file.gguf` or `owner/name:file.gguf`."""
    place, colon, file = name.rpartition(":")
    if not colon or (Path(place).is_dir() and not (Path(place) / file).is_file()):
        raise BadInput(f"model '{name}': no such GGUF file")
    return place, file


def _with_base(source: Source) -> Source:
    """The source itself, or an adapter's folder and base."""
    folder = source.folder or _downloaded_adapter(source)
    if folder is None or not (folder / _ADAPTER).is_file():
        return source
    if not (folder / "adapter_model.safetensors").is_file():
        raise BadInput(f"adapter '{source.name}' has no safetensors weights (adapter_model)")
    try:
        config = from_json((folder / _ADAPTER).read_text("utf-8"))
        base, revision = config["base_model_name_or_path"], config.get("revision")
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"adapter '{source.name}': {_ADAPTER} names no base model") from error
    if not isinstance(base, str) or not base:
        raise BadInput(f"adapter '{source.name}': {_ADAPTER} names no base model")
    near = folder.parent / Path(base).name
    if near.is_dir() and not Path(base).is_dir():
        base = str(near)
    elif revision and not Path(base).is_dir():
        base = f"{base}@{revision}"
    try:
        found = find_source(base)
    except BadInput as error:
        raise BadInput(f"adapter '{source.name}': its base: {error}") from error
    if found.base is not None:
        raise BadInput(f"adapter '{source.name}': its base '{base}' is itself an adapter")
    return Source(source.name, str(folder), source.revision, base=found)


def _downloaded_adapter(source: Source) -> Path | None:
    """The local copy of an adapter on the Hub, or None where the id holds a whole model."""
    from huggingface_hub import snapshot_download
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        if find_adapter_config_file(source.place, revision=source.revision) is None:
            return None
        allowed = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
        return Path(
            snapshot_download(source.place, revision=source.revision, allow_patterns=allowed)
        )
    # Not to be reached, gated, or not there: loading the model itself says which.
    except (OSError, ValueError):
        return None


def content_hash(source: Source) -> str:
    """Hex digest of the files that decide what the model does; "" for weights on the Hub."""
    folder = source.folder
    if folder is None:
        return ""
    digest = hashlib.sha256()
    for path in _deciding(source, folder):
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    if source.base:
        digest.update((content_hash(source.base) or str(source.base)).encode())
    return digest.hexdigest()[:16]


def _deciding(source: Source, folder: Path) -> Iterator[Path]:
    if source.gguf:
        yield folder / source.gguf
        return
    for path in sorted(folder.iterdir()):
        if path.suffix in _DECIDING and path.name != "card.json":
            yield path


def beside(name: str, source: str) -> str:
    """`name`, or the folder of that name next to the folder `source` where there is one."""
    near = Path(source).parent / name
    return str(near) if Path(source).is_dir() and near.is_dir() else name


def unknown(name: str) -> str:
    """One line for a name that stands for nothing."""
    return (
        f"unknown model '{name}': neither shipped, nor a folder, nor a GGUF file, nor a Hub id "
        "(owner/name) that can be reached or is cached here; `reroute models` lists the "
        "shipped ones"
    )
