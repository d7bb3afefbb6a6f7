"""Other models that attacks on a model use, such as a draft or one more to fit on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attacks.core.model.sources import beside

if TYPE_CHECKING:
    from attacks.core.model.model import Model


class Companions:
    """Models beside one, each loaded once, to the same device in the same dtype.

    They are as they were trained, also where the model itself is changed.
    """

    def __init__(self, hf: Any, load: Callable[..., Model]) -> None:
        """None yet; `load` is `Model.load`, with the date that the model itself is told."""
        self._hf = hf
        self._load = load
        self._loaded: dict[str, Model] = {}

    def get(self, name: str) -> Model:
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
