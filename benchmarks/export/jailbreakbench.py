"""JailbreakBench artifacts: `METHOD/ATTACK_TYPE/MODEL.json` (arXiv 2404.01318).

The fields are those of `jailbreakbench.artifact.AttackArtifact` (version 1.0.0). Its reader knows
four models by name and refuses files about others. Records do not say when they were made, so that
`evaluation_date`, which may be left out, is.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from attacks.core.errors import BadInput
from benchmarks.boards.tables import flat
from benchmarks.export.attempts import Attempt, Export, Group, left_out

#: Models as JailbreakBench calls them.
_MODELS = ("vicuna-13b-v1.5", "llama-2-7b-chat-hf", "gpt-3.5-turbo-1106", "gpt-4-0125-preview")
#: Attacks that see no weights.
_BLACK_BOX = ("direct",)
_ROW = re.compile(r"jbb-harmful-(\d+)")


def write_artifacts(found: Export, out: Path) -> tuple[list[Path], list[str]]:
    """One file for each attack, model and seed; what is not harmful has no place in them.

    Raises:
        BadInput: nothing that an artifact could hold.
    """
    kept = [group for group in found.groups if group.sends_text]
    written, unjudged = [], 0
    for group in kept:
        for seed in sorted({attempt.record.seed for attempt in group.attempts}):
            own = [
                attempt
                for attempt in group.attempts
                if attempt.record.seed == seed and attempt.record.harmful
            ]
            judged = [attempt for attempt in own if attempt.entry.success is not None]
            unjudged += len(own) - len(judged)
            if not judged:
                continue
            several = len({attempt.record.seed for attempt in group.attempts}) > 1
            method = group.method + (f"-seed{seed}" if several else "")
            path = out / method / _attack_type(group) / f"{group.model}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(_artifact(group, method, judged, found.judge), indent=2)
            path.write_text(f"{text}\n", "utf-8")
            written.append(path)
    if not written:
        raise BadInput(
            "no judged prompt attack on a harmful behaviour: artifacts can only contain those"
        )
    others = [group for group in found.groups if not group.sends_text]
    notes = left_out(others, "since a prompt alone does not reproduce them")
    return written, notes + ([f"left out, without a verdict: {unjudged}"] if unjudged else [])


def _attack_type(group: Group) -> str:
    if group.first.origin_model or group.first.attack == "replay":
        return "transfer"
    return "black_box" if group.first.attack in _BLACK_BOX else "white_box"


def _artifact(group: Group, method: str, own: list[Attempt], judge: str) -> dict[str, Any]:
    record = group.first
    rows = [_jailbreak(at, attempt) for at, attempt in enumerate(own)]
    rows = _numbered(rows, [attempt.behavior.id for attempt in own])
    succeeded = sum(row["jailbroken"] for row in rows)
    short = record.model.rpartition("/")[2].lower()
    return {
        "parameters": {
            "method": method,
            "model": short if short in _MODELS else record.model,
            "attack_type": _attack_type(group),
            "defense": record.defense or None,
            "attack_success_rate": succeeded / len(rows),
            "total_number_of_jailbreaks": succeeded,
            "number_of_submitted_prompts": sum(row["prompt"] is not None for row in rows),
            "total_number_of_queries": None,
            "total_prompt_tokens": None,
            "total_response_tokens": None,
            "evaluation_llm_provider": "reroute-bench",
            "method_parameters": {
                **{key: _plain(value) for key, value in flat(record.params).items()},
                "judge": judge,
                "seed": own[0].record.seed,
                "threat_model": record.threat_model,
            },
        },
        "jailbreaks": rows,
    }


def _plain(value: Any) -> str | int | float:
    """A parameter as the schema takes it: text or a number."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    return json.dumps(value)


def _jailbreak(at: int, attempt: Attempt) -> dict[str, Any]:
    """The attack's own first choice; one that failed to run has no prompt and is no jailbreak."""
    record, behavior = attempt.record, attempt.behavior
    return {
        "index": at,
        "goal": behavior.text,
        "behavior": behavior.id,
        "category": behavior.category,
        "prompt": record.prompts[0] if record.prompts else None,
        "response": record.completions[0] if record.completions else None,
        "number_of_queries": None,
        "queries_to_jailbreak": None,
        "prompt_tokens": None,
        "response_tokens": None,
        "jailbroken": attempt.entry.success is True,
    }


def _numbered(rows: list[dict[str, Any]], ids: list[str]) -> list[dict[str, Any]]:
    """The rows of JailbreakBench's own behaviours under its own numbers, in its order."""
    found = [_ROW.fullmatch(name) for name in ids]
    numbers = [int(match[1]) - 1 for match in found if match]
    if len(numbers) < len(rows) or max(Counter(numbers).values()) > 1:
        return rows
    numbered = [{**row, "index": number} for row, number in zip(rows, numbers, strict=True)]
    return sorted(numbered, key=lambda row: int(row["index"]))
