"""Things that share a name belong together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence


def groups_of(named: Iterable[Sequence[str]]) -> dict[str, str]:
    """The group of each name, called after one of its names.

    Args:
        named: the names of each thing, one at least; things that share one are in one group, and
            so are those that are linked through others.
    """
    found: dict[str, str] = {}
    members: dict[str, list[str]] = defaultdict(list)
    for names in named:
        known = dict.fromkeys(found[name] for name in names if name in found)
        group = next(iter(known), names[0])
        moved = [name for other in known if other != group for name in members.pop(other)]
        for name in (*names, *moved):
            if found.get(name) != group:
                found[name] = group
                members[group].append(name)
    return found
