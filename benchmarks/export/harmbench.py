"""HarmBench test cases, completions and results, in its pipeline's folders (arXiv 2402.04249).

`METHOD/EXPERIMENT/test_cases/test_cases.json` maps behaviour ids to prompts,
`completions/MODEL.json` to prompts with generations (`test_case`, `generation`);
`results/MODEL.json` adds the `label`, 1 for a success. The label is this suite's verdict, not that
of HarmBench's classifier.

The folders are those of HarmBench's `docs/evaluation_pipeline.md`. The field names and the test
for success are those of its `generate_completions.py` and `evaluate_completions.py`. All three were
read in a public copy of the repository (github.com/Wendy-1222/SLM_Jailbreak, commit 1c1adaf); the
original, github.com/centerforaisafety/HarmBench, was not at hand.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from attacks.core.errors import BadInput
from benchmarks.export.attempts import Attempt, Export, left_out


def write_cases(found: Export, out: Path) -> tuple[list[Path], list[str]]:
    """Three files for each attack on each model; an experiment is named after its model.

    Raises:
        BadInput: nothing that test cases could hold.
    """
    written: list[Path] = []
    kept = [group for group in found.groups if group.sends_text]
    unjudged = 0
    for group in kept:
        own = [attempt for attempt in group.attempts if attempt.record.harmful]
        if not own:
            continue
        prompts = _by_behavior(own, _prompts)
        completions = _by_behavior(own, _completions)
        results = _by_behavior(own, _results)
        unjudged += _count(completions) - _count(results)
        for path, value in (
            (Path("test_cases/test_cases.json"), prompts),
            (Path(f"completions/{group.model}.json"), completions),
            (Path(f"results/{group.model}.json"), results),
        ):
            target = out / group.method / group.model / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(f"{json.dumps(value, indent=2)}\n", "utf-8")
            written.append(target)
    if not written:
        raise BadInput("no prompt attack on a harmful behaviour: test cases can only contain those")
    others = [group for group in found.groups if not group.sends_text]
    notes = left_out(others, "since a prompt alone does not reproduce them")
    return written, notes + (
        [f"without a verdict, and so not in results/: {unjudged}"] if unjudged else []
    )


def _count(rows: dict[str, list[Any]]) -> int:
    return sum(map(len, rows.values()))


def _by_behavior(own: list[Attempt], rows: Any) -> dict[str, list[Any]]:
    """What `rows` makes of each attempt, over all seeds; a failed one adds nothing."""
    found: dict[str, list[Any]] = defaultdict(list)
    for attempt in own:
        found[attempt.behavior.id] += rows(attempt)
    return dict(found)


def _prompts(attempt: Attempt) -> list[str]:
    """What was sent, best first; drawn answers repeat the first one."""
    return list(attempt.record.prompts[: attempt.record.greedy])


def _completions(attempt: Attempt) -> list[dict[str, Any]]:
    record = attempt.record
    pairs = zip(_prompts(attempt), record.completions, strict=False)
    return [{"test_case": prompt, "generation": answer} for prompt, answer in pairs]


def _results(attempt: Attempt) -> list[dict[str, Any]]:
    labels = [
        judged.success if (judged := attempt.entry.verdicts.get(at)) else None
        for at in range(attempt.record.greedy)
    ]
    pairs = zip(_completions(attempt), labels, strict=False)
    return [{**row, "label": int(label)} for row, label in pairs if label is not None]
