"""Models as suites and options ask for them."""

from __future__ import annotations

from typing import Protocol

from attacks.core.errors import BadInput, suggestion
from attacks.core.model import Model
from benchmarks.inputs.models import names


class How(Protocol):
    """How a model is loaded; suites and the options of commands have these fields."""

    @property
    def device(self) -> str: ...
    @property
    def device_map(self) -> str | None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def system(self) -> str | None: ...
    @property
    def date(self) -> str: ...


def load_model(source: str, name: str, how: How) -> Model:
    """The model at `source` (see `models.resolve`), which records call `name`.

    Raises:
        BadInput: see `Model.load`.
    """
    return Model.load(
        source,
        name=name,
        device=how.device,
        device_map=how.device_map,
        dtype=how.dtype,
        system=how.system,
        date=how.date,
    )


def check_model(source: str, name: str, how: How) -> None:
    """Find out, without the weights, whether that model can be loaded and attacked.

    Raises:
        BadInput: see `Model.check`.
    """
    try:
        Model.check(source, name=name, system=how.system, date=how.date)
    except BadInput as error:
        raise BadInput(f"{error}{suggestion(name, names())}") from error
