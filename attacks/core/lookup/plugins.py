"""Classes by name: the shipped ones, loaded on demand, and those of installed packages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from attacks.core.errors import BadInput, suggestion
from attacks.core.lookup.declared import Declared, NotDeclared, declared, of_class

T = TypeVar("T")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """The subclasses of `base`, which is a `T`, that are known by name."""

    kind: str
    """What they are called in messages, such as "attack"."""
    group: str
    """Entry-point group in which other packages register theirs."""
    base: str
    """`module:class`; imported with the first class that is loaded, for it may be heavy."""
    built_in: Mapping[str, str]
    """Name -> `module:class` of the shipped ones."""

    def sources(self) -> dict[str, str]:
        """Names and the `module:class` behind each, without importing any of them.

        Raises:
            BadInput: two packages, or a package and the suite, claim the same name, or a package
                claims one that specs, tables and shells would read as more than a name.
        """
        table = dict(self.built_in)
        try:
            points = entry_points(group=self.group)
        except Exception as error:  # Python's parser raises whatever comes.
            raise BadInput(f"malformed entry_points.txt of a package: {error}") from error
        for point in points:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", point.name, re.ASCII):
                raise BadInput(
                    f"{self.kind} name '{point.name}' of an installed package ({point.value}); "
                    "valid: letters, digits, '.', '_' and '-'; uninstall the package"
                )
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
            valid = ", ".join(sorted(table))
            raise BadInput(f"unknown {self.kind} '{name}'; valid: {valid}{suggestion(name, table)}")
        source = f"{self.kind} '{name}' ({table[name]})"
        try:
            loaded: type[T] = EntryPoint(name, table[name], self.group).load()
        except (Exception, SystemExit) as error:  # It runs the package's own code.
            reason = f"{type(error).__name__}: {error}"
            raise BadInput(f"{source} does not load: {reason}") from error
        base = EntryPoint("base", self.base, self.group).load()
        if not (isinstance(loaded, type) and issubclass(loaded, base)):
            raise BadInput(f"{source} is not a subclass of {base.__name__}")
        return loaded

    def describe(self) -> dict[str, Declared]:
        """What every class declares, by name; only what its source does not tell is imported.

        Raises:
            BadInput: as `find`, of those that are imported.
        """
        found = {}
        for name, source in sorted(self.sources().items()):
            try:
                found[name] = declared(source)
            except NotDeclared:
                found[name] = of_class(self.find(name))
        return found

    def all(self) -> dict[str, type[T]]:
        """Every class by name."""
        return {name: self.find(name) for name in sorted(self.sources())}
