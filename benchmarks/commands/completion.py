"""Shell completion of names: of attacks, models, sets, judges, defences and suites."""

from __future__ import annotations

from argparse import Action, ArgumentParser, _SubParsersAction
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from benchmarks.commands.basic import LISTINGS

#: Which listing has the names that an argument takes, by its destination.
_NAMES = {
    "attacks": "attacks",
    "base": "attacks",
    "models": "models",
    "model": "models",
    "to": "models",
    "behaviors": "behaviors",
    "train": "behaviors",
    "judges": "judges",
    "defense": "defenses",
    "suite": "suites",
}


def complete(parser: ArgumentParser) -> None:
    """Answers the shell, and exits, where it is asking and argcomplete (an extra) is there."""
    with suppress(ImportError):
        import argcomplete

        for action, listing in named(parser):
            offered: Any = action
            offered.completer = names_of(listing)
        argcomplete.autocomplete(parser)


def named(parser: ArgumentParser, command: str = "") -> Iterator[tuple[Action, str]]:
    """The arguments that take a name, those of subcommands included, and the listing of each."""
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for name, sub in action.choices.items():
                yield from named(sub, name)
        elif action.dest == "name" and command in LISTINGS:
            yield action, command
        elif action.choices is None and action.nargs != 0 and action.dest in _NAMES:
            yield action, _NAMES[action.dest]


def names_of(listing: str) -> Callable[..., list[str]]:
    """A completer: the names of a listing that begin with what is typed."""

    def completer(prefix: str = "", **_: Any) -> list[str]:
        names = [item["name"] for item in LISTINGS[listing]()]
        return [name for name in names if name.startswith(prefix)]

    return completer
