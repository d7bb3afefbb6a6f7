"""Other models that attacks on a model use, such as a draft or one more to fit on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from attacks.core.model.sources import beside

#: `Model`, which holds its companions and so cannot be imported here.
M = TypeVar("M")


class Companions(Generic[M]):
    """Models beside one, each loaded once, to the same device in the same dtype.

    They are as they were trained, also where the model itself is changed.
    """

    def __init__(self, hf: Any, load: Callable[..., M]) -> None:
        """None yet; `load` is `Model.load`, with the date that the model itself is told."""
        self._hf = hf
        self._load = load
        self._loaded: dict[str, M] = {}

    def get(self, name: str) -> M:
        """The model `name`.

        Args:
            name: a folder, a Hub id, or the name of a folder beside the one this was loaded from.

        Raises:
            BadInput: as `Model.load`.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(
                beside(name, str(self._hf.name_or_path)),
                name=name,
                device=str(self._hf.device),
                dtype=str(self._hf.dtype).removeprefix("torch."),
            )
        return self._loaded[name]
