"""What a class declares, read from its source file without importing it.

Listings need summaries and defaults, while importing the classes behind them takes seconds (torch).
What is not written as a plain value is refused here, and the caller imports the class after all.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

#: What literals and sums of numbers are made of: neither names nor calls.
_PLAIN = (
    *(ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.UnaryOp, ast.BinOp),
    *(ast.unaryop, ast.operator, ast.expr_context),
)

#: What some factories of defaults make.
_EMPTY: dict[str, ast.expr] = {
    "dict": ast.Dict([], []),
    "list": ast.List([], ast.Load()),
    "tuple": ast.Tuple([], ast.Load()),
}


class NotDeclared(LookupError):
    """The source does not say it in plain values, or there is no source."""


@dataclass(frozen=True)
class Field:
    """A dataclass field."""

    name: str
    annotation: str
    default: Any
    """The value; of a group of options (a field that is a dataclass itself), that of each;
    `dataclasses.MISSING` where there is none."""
    group: tuple[Field, ...]
    """The options of a group."""
    doc: str
    """Of the field, or of the one that it overrides; empty where there is none."""


@dataclass(frozen=True)
class Declared:
    """What a class declares, inherited declarations included."""

    doc: str
    constants: Mapping[str, Any]
    """Class attributes that are no fields."""
    fields: tuple[Field, ...]
    path: str
    """The source file, empty where it is not known."""

    @property
    def params(self) -> dict[str, Any]:
        """The defaults by name; none at all where a field has no default."""
        known = {field.name: field.default for field in self.fields}
        return {} if MISSING in known.values() else known


def declared(source: str) -> Declared:
    """The class `module:class`.

    Raises:
        NotDeclared: no such class in a Python file, or a value that is no literal, no constant of
            a module and no member of a class.
    """
    module, _, name = source.partition(":")
    try:
        return _read(*_class(module, name))
    except RecursionError as error:
        raise NotDeclared(f"{source}: defined by itself, or nested too deeply") from error


def of_class(cls: type[Any]) -> Declared:
    """The same of an imported class, but for the docstrings of its fields, which it forgets."""
    names = [name for base in reversed(cls.__mro__) for name in inspect.get_annotations(base)]
    fields = _fields_of(cls)
    plain = {name for name in names if hasattr(cls, name)} - {field.name for field in fields}
    constants = {name: getattr(cls, name) for name in names if name in plain}
    try:
        path = inspect.getsourcefile(cls) or ""
    except TypeError:
        path = ""
    return Declared(inspect.getdoc(cls) or "", constants, fields, path)


def _fields_of(cls: Any) -> tuple[Field, ...]:
    found = []
    for each in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
        made: Any = each.default_factory
        default: Any = each.default if made is MISSING else made()
        options = _fields_of(type(default))
        if options:
            default = dataclasses.asdict(default)
        found.append(Field(each.name, str(each.type), default, options, ""))
    return tuple(found)


def _read(module: str, node: ast.ClassDef) -> Declared:
    constants: dict[str, Any] = {}
    fields: dict[str, Field] = {}
    for base in reversed(node.bases):
        if ast.unparse(base) == "ABC":
            continue
        above = _read(*_class_of(module, base))
        constants |= above.constants
        fields |= {field.name: field for field in above.fields}
    for item, doc in _assignments(node):
        name = ast.unparse(item.target)
        annotation = ast.unparse(item.annotation)
        if annotation.startswith("ClassVar"):
            if item.value is not None:
                constants[name] = _value(module, item.value)
        else:
            found = _field(module, name, annotation, item.value, doc)
            # A text that another default alone does not change is written once.
            inherited = fields[name].doc if name in fields else ""
            fields[name] = found if doc else dataclasses.replace(found, doc=inherited)
    doc = ast.get_docstring(node) or ""
    return Declared(doc, constants, tuple(fields.values()), str(_file(module)))


def _assignments(node: ast.ClassDef) -> Iterator[tuple[ast.AnnAssign, str]]:
    """Each annotated name of the class body, with the string that follows it."""
    for item, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            text = after.value if isinstance(after, ast.Expr) else None
            told = text.value if isinstance(text, ast.Constant) else None
            yield item, inspect.cleandoc(told) if isinstance(told, str) else ""


def _field(module: str, name: str, annotation: str, value: ast.expr | None, doc: str) -> Field:
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        made = given.get("default_factory")
        if isinstance(made, ast.Lambda):
            value = made.body
        elif isinstance(made, ast.Name) and made.id in _EMPTY:
            value = _EMPTY[made.id]
        elif made is not None:
            value = ast.Call(made, [], [])
        else:
            value = given.get("default")
    if value is None:
        return Field(name, annotation, MISSING, (), doc)
    where, value = _resolved(module, value)
    if isinstance(value, ast.Call) and not (value.args or value.keywords):
        group = _read(*_class_of(where, value.func)).fields
        return Field(name, annotation, {each.name: each.default for each in group}, group, doc)
    return Field(name, annotation, _value(where, value), (), doc)


def _value(module: str, node: ast.expr) -> Any:
    """The value of a literal or a sum of numbers, a module's constant, or a class's member."""
    module, node = _resolved(module, node)
    if isinstance(node, ast.Attribute):
        where, owner = _class_of(module, node.value)
        for item in owner.body:
            if isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == node.attr:
                return _value(where, item.value)
    if all(isinstance(part, _PLAIN) for part in ast.walk(node)):
        whole = ast.fix_missing_locations(ast.Expression(node))
        try:
            return eval(compile(whole, module, "eval"), {"__builtins__": {}})
        except (ArithmeticError, TypeError, ValueError) as error:
            raise NotDeclared(f"{ast.unparse(node)} in {module}: {error}") from error
    raise NotDeclared(f"{ast.unparse(node)} in {module} is no plain value")


def _resolved(module: str, node: ast.expr) -> tuple[str, ast.expr]:
    """What a name stands for, where it is a constant of a module."""
    if isinstance(node, ast.Name):
        where, found = _definition(module, node.id)
        if isinstance(found, ast.expr):
            return _resolved(where, found)
    return module, node


def _class_of(module: str, node: ast.expr) -> tuple[str, ast.ClassDef]:
    if not isinstance(node, ast.Name):
        raise NotDeclared(f"{ast.unparse(node)} in {module} is no name of a class")
    return _class(module, node.id)


def _class(module: str, name: str) -> tuple[str, ast.ClassDef]:
    where, found = _definition(module, name)
    if not isinstance(found, ast.ClassDef):
        raise NotDeclared(f"{name} in {module} is no class")
    return where, found


def _definition(module: str, name: str) -> tuple[str, ast.ClassDef | ast.expr]:
    """Where `name` as `module` knows it is defined, imports followed, and its definition."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and name in map(ast.unparse, node.targets):
            return module, node.value
        if isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.target) == name:
            return module, node.value
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return _definition(node.module, alias.name)
    raise NotDeclared(f"no {name} in {module}")


@cache
def _tree(module: str) -> ast.Module:
    try:
        return ast.parse(_file(module).read_text("utf-8"))
    except (OSError, SyntaxError, ValueError, MemoryError) as error:
        raise NotDeclared(f"{module}: {error}") from error


@cache
def _file(module: str) -> Path:
    """The source file, found without importing the packages around it."""
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        for part in inner:
            if spec is None:
                break
            spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    except (ImportError, ValueError) as error:
        raise NotDeclared(f"{module}: {error}") from error
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise NotDeclared(f"{module} has no source file")
    return Path(spec.origin)
