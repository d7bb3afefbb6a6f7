"""What verifying found, as a table and as JSON: figures and reasons, no prompt and no answer."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence

from benchmarks.boards.tables import table, text
from benchmarks.verify.claims import PLAIN, Condition
from benchmarks.verify.verify import Finding

#: How answers are made anew, by what the attacker was allowed.
_HOW = {
    "string": "Prompts are sent as recorded.",
    "weights": "Edits of weights are merged, from the recorded artefact, into those of the model.",
    "hooks": (
        "Where an attack changes activations, or a defence stands before the model, this suite's "
        "hooks do so, with the recorded artefacts."
    ),
}


def as_json(findings: Sequence[Finding]) -> str:
    """A list of objects, one for each success and condition, with a final newline."""
    rows = [
        {
            "key": found.claim.record.key,
            "model": found.model,
            "origin_model": found.claim.record.model,
            "attack": found.claim.record.attack,
            "attack_hash": found.claim.record.attack_hash,
            "threat_model": found.claim.record.threat_model,
            "behavior_id": found.claim.record.behavior_id,
            "seed": found.claim.record.seed,
            "completion_index": found.claim.index,
            "judges": list(found.claim.judges),
            "dtype": found.condition.dtype,
            "batch": found.condition.batch,
            "status": found.status,
            "reproduces": found.reproduces,
            "reason": found.reason,
        }
        for found in findings
    ]
    return json.dumps(rows, indent=2) + "\n"


def as_markdown(findings: Sequence[Finding]) -> str:
    """A table by model and attack, what did not reproduce, and how to read it."""
    if not findings:
        return "No successes are claimed.\n"
    conditions = list(dict.fromkeys(found.condition for found in findings))
    moved = any(found.model != found.claim.record.model for found in findings)
    groups: dict[tuple[str, str, str], list[Finding]] = defaultdict(list)
    for found in findings:
        record = found.claim.record
        groups[record.model, found.model, record.attack].append(found)
    cells = [_line(names, own, conditions, moved) for names, own in sorted(groups.items())]
    cells.append(_line(("all", "", ""), findings, conditions, moved))
    headings = ["Model", *(["Sent to"] if moved else []), "Attack", "Successes"]
    shown = table([*headings, *map(str, conditions)], cells, left=len(headings) - 1)
    about = set[str]().union(*map(_told, findings))
    note = (
        "Successes reproduced out of those claimed; in parentheses, how many of them verbatim. The "
        f"first condition ({PLAIN}) decides: plain transformers, in a process of its own. "
    ) + " ".join(said for told, said in _HOW.items() if told in about)
    return "\n\n".join([shown, note, *_lines(findings)]) + "\n"


def _told(found: Finding) -> set[str]:
    """Which sentences of `_HOW` are about it."""
    record = found.claim.record
    if record.defense or record.threat_model == "intervention":
        return {"hooks"}
    if record.threat_model == "weights":
        return {"weights", "hooks"} if "+" in record.attack else {"weights"}
    return {"string"}


def _line(
    names: tuple[str, str, str],
    findings: Sequence[Finding],
    conditions: Sequence[Condition],
    moved: bool,
) -> list[str]:
    origin, model, attack = map(text, names)
    cells = [origin, *([model] if moved else []), attack]
    cells.append(str(sum(found.condition == PLAIN for found in findings)))
    for condition in conditions:
        own = Counter(found.status for found in findings if found.condition == condition)
        none = own["unverifiable"] == own.total()
        cells.append("-" if none else f"{own['same'] + own['other']} ({own['same']})")
    return cells


def _lines(findings: Sequence[Finding]) -> list[str]:
    """A line for each success that does not reproduce in the first condition.

    What cannot be tried is counted by attack and reason.
    """
    lost = [found for found in findings if found.condition == PLAIN and not found.reproduces]
    untried = Counter(
        (found.claim.record.model, found.claim.record.attack, found.reason)
        for found in lost
        if found.status == "unverifiable"
    )
    counted = [
        f"- {text(model)} · {text(attack)}: {count}, {text(reason)}"
        for (model, attack, reason), count in untried.items()
    ]
    failed = [
        f"- {text(found.claim.record.model)} · {text(found.claim.record.attack)} · "
        f"{text(found.claim.record.behavior_id)}, seed {found.claim.record.seed}, candidate "
        f"{found.claim.index + 1}: {text(found.reason)}"
        for found in lost
        if found.status != "unverifiable"
    ]
    parts = []
    if failed:
        parts += [f"Not reproduced: {len(failed)}.", "\n".join(failed)]
    if counted:
        parts += [f"Not verifiable: {untried.total()}.", "\n".join(counted)]
    return parts
