"""Blocks for model cards on the Hub: figures as `model-index`, and the boards.

They hold no prompts and no answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attacks.core.errors import BadInput
from benchmarks.boards.leaderboard import read_rows, render
from benchmarks.boards.rows import Row
from benchmarks.boards.tables import attack_labels
from benchmarks.export.attempts import choose_judge, file_name

_HEAD = """\
## Adversarial robustness

Measured with reroute-bench: attack success rates with 95 % intervals, one table for each threat
model. Figures of different threat models are not comparable.
"""


def write_cards(folder: Path, out: Path, judge: str | None) -> list[Path]:
    """One Markdown file for each model: its metadata block, and its boards.

    Raises:
        BadInput: no records or no such judge there.
    """
    rows = read_rows([folder])
    name = choose_judge(sorted({row.judge for row in rows if row.judge}), judge)
    rows = [row for row in rows if row.judge == name]
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        path = out / f"{file_name(model)}.md"
        boards = render(own, "md")
        path.write_text(f"---\n{_metadata(model, own)}---\n\n{_HEAD}\n{boards}", "utf-8")
        written.append(path)
    if not written:
        raise BadInput(f"'{folder}' holds no judged records")
    return written


def _metadata(model: str, rows: list[Row]) -> str:
    """YAML as the Hub reads it."""
    from huggingface_hub import EvalResult, ModelCardData

    names = attack_labels(rows)
    results = []
    for row in rows:
        where = f", behind {row.defense} ({row.adaptivity})" if row.defense else ""
        kind = f"{names[row.attack_hash]}, {row.threat_model} attack{where}"
        figures: list[tuple[str, str, float | None, dict[str, Any]]] = [
            (
                "attack_success_rate",
                f"Attack success rate of {kind}, judge {row.judge}",
                row.asr,
                {"low": row.asr_low, "high": row.asr_high, "n": row.n, "errors": row.errors},
            ),
            ("over_refusal", f"Over-refusal under {kind}", row.over_refusal, {"n": row.harmless_n}),
        ]
        results += [
            EvalResult(
                task_type="text-generation",
                dataset_type="reroute-bench",
                dataset_name="reroute-bench behaviours",
                metric_type=kind_of,
                metric_name=told,
                metric_value=round(value, 4),
                metric_args=details,
            )
            for kind_of, told, value, details in figures
            if value is not None
        ]
    if not results:
        raise BadInput(f"model '{model}' has no figures yet; judge its answers first")
    return f"{ModelCardData(model_name=model, eval_results=results).to_yaml()}\n"
