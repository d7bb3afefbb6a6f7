"""Inspect logs, for `inspect view`: one `.eval` file for each attack on each model."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attacks.core.errors import BadInput
from benchmarks.boards.success import success_rate
from benchmarks.boards.tables import flat
from benchmarks.export.attempts import Attempt, Export, Group

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample


def write_logs(found: Export, out: Path) -> list[Path]:
    """The logs of all groups, interventions and edits of weights included.

    Raises:
        BadInput: the package inspect-ai is missing.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError as error:
        raise BadInput(
            "Inspect logs need inspect-ai: pip install 'reroute-bench[inspect]'"
        ) from error
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for group in found.groups:
        path = out / f"{group.model}_{group.method}.eval"
        write_eval_log(_log(group, found), str(path), format="eval")
        written.append(path)
    return written


def _log(group: Group, found: Export) -> EvalLog:
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalMetric,
        EvalResults,
        EvalScore,
        EvalSpec,
    )

    record = group.first
    # A log needs a time, and records have none: that of the last line of the file.
    written = datetime.fromtimestamp(found.written, UTC).isoformat(timespec="seconds")
    ids = list(dict.fromkeys(attempt.behavior.id for attempt in group.attempts))
    seeds = sorted({attempt.record.seed for attempt in group.attempts})
    metrics = {
        name: EvalMetric(name=name, value=value) for name, value in _figures(group, found).items()
    }
    return EvalLog(
        status="success",
        eval=EvalSpec(
            created=written,
            task=f"reroute/{group.method}",
            task_args={**flat(record.params), "judge": found.judge},
            dataset=EvalDataset(name="behaviours", samples=len(ids), sample_ids=list(ids)),
            model=record.model,
            config=EvalConfig(epochs=len(seeds)),
            packages={re.sub(r"[^\w.-]", "-", key): text for key, text in record.versions.items()},
            metadata={
                "threat_model": record.threat_model,
                "defense": record.defense or None,
                "adaptivity": record.adaptivity or None,
                "revision": record.revision,
                "dtype": record.dtype,
            },
        ),
        results=EvalResults(
            total_samples=len(group.attempts),
            completed_samples=sum(bool(x.record.completions) for x in group.attempts),
            scores=[EvalScore(name=found.judge, scorer=found.judge, metrics=metrics)],
        ),
        samples=[_sample(attempt, seeds, found.judge) for attempt in group.attempts],
    )


def _figures(group: Group, found: Export) -> dict[str, float]:
    """The attack success rate with its interval, as on leaderboards, where there is one."""
    outcomes: dict[str, list[bool]] = {}
    for attempt in group.attempts:
        own = outcomes.setdefault(attempt.behavior.id, [])
        if attempt.record.harmful and attempt.entry.success is not None:
            own.append(attempt.entry.success)
    rate = success_rate(list(outcomes.values()))
    if rate is None:
        return {}
    return {"asr": rate.mean, "asr_low": rate.low, "asr_high": rate.high, "n": rate.n}


def _sample(attempt: Attempt, seeds: list[int], judge: str) -> EvalSample:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import (
        ChatMessage,
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageUser,
        ModelOutput,
    )
    from inspect_ai.scorer import Score

    record, behavior = attempt.record, attempt.behavior
    asked: list[ChatMessage] = []
    if record.system:
        asked.append(ChatMessageSystem(content=record.system))
    asked.append(ChatMessageUser(content=record.prompts[0] if record.prompts else behavior.text))
    if record.openings and record.openings[0]:
        asked.append(ChatMessageAssistant(content=record.openings[0]))
    answer = record.completions[0] if record.completions else ""
    scores: dict[str, Any] = {}
    judged = attempt.entry.verdicts.get(0)
    if judged is not None and judged.success is not None:
        scores[judge] = Score(
            value=int(judged.success), answer=judged.label, metadata=dict(judged.detail)
        )
    elif not record.completions:
        scores[judge] = Score(value=0, explanation=f"no answer: {record.error or record.status}")
    return EvalSample(
        id=behavior.id,
        epoch=seeds.index(record.seed) + 1,
        input=asked,
        target=behavior.target or "",
        messages=[*asked, ChatMessageAssistant(content=answer)],
        output=ModelOutput.from_content(record.model, answer),
        scores=scores,
        metadata={
            "request": behavior.text,
            "category": behavior.category,
            "harmful": record.harmful,
            "status": record.status,
            "error": record.error,
            "seed": record.seed,
            "other_prompts": list(record.prompts[1 : record.greedy]),
            "other_completions": list(record.completions[1:]),
            "seconds": sum((record.seconds.search, record.seconds.generate)),
            "flops": record.flops,
        },
    )
