"""Classes by name: the shipped ones, loaded on demand, and those of installed packages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from attacks.core.errors import BadInput

T = TypeVar("T")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """The subclasses of `base` that are known by name."""

    kind: str
    """What they are called in messages, such as "attack"."""
    group: str
    """Entry-point group in which other packages register theirs."""
    base: type[T]
    built_in: Mapping[str, str]
    """Name -> `module:class` of the shipped ones."""

    def sources(self) -> dict[str, str]:
        """Names and the `module:class` behind each, without importing any of them.

        Raises:
            BadInput: two packages, or a package and the suite, claim the same name.
        """
        table = dict(self.built_in)
        for point in entry_points(group=self.group):
            if table.setdefault(point.name, point.value) != point.value:
                raise BadInput(
                    f"{self.kind} name '{point.name}' is claimed twice: {table[point.name]} and "
                    f"{point.value}; uninstall one of the packages"
                )
        return table

    def find(self, name: str) -> type[T]:
        """The class registered as `name`.

        Raises:
            BadInput: unknown name, or a plugin that does not load or is of another kind.
        """
        table = self.sources()
        if name not in table:
            raise BadInput(f"unknown {self.kind} '{name}'; valid: {', '.join(sorted(table))}")
        source = f"{self.kind} '{name}' ({table[name]})"
        try:
            loaded = EntryPoint(name, table[name], self.group).load()
        except (ImportError, AttributeError) as error:
            raise BadInput(f"{source} does not load: {error}") from error
        if not (isinstance(loaded, type) and issubclass(loaded, self.base)):
            raise BadInput(f"{source} is not a subclass of {self.base.__name__}")
        return loaded

    def all(self) -> dict[str, type[T]]:
        """Every class by name."""
        return {name: self.find(name) for name in sorted(self.sources())}
