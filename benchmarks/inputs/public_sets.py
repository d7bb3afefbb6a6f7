"""Public behaviour sets, loaded from the Hugging Face Hub through `datasets`.

Sources, licences and known faults: data/behaviors/README.md.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from benchmarks.inputs.behavior_files import SUFFIXES, behavior, is_harmful, read_file, with_context

#: A folder with files of the public sets (`jailbreakbench-harmful.csv`), for machines without the
#: Hub; a file that lies there comes before it.
LOCAL = "REROUTE_SETS"


@dataclass(frozen=True)
class Part:
    """One split of a dataset on the Hub, and which of its columns mean what."""

    split: str
    id: str
    """Rows are called `<id>-<row>`, counted from 1."""
    columns: Mapping[str, str]
    """Column for each of text, target, category and context that the set has."""
    config: str | None = None
    harmful: bool | str = True
    """Whether the rows are harmful, or the column that says so."""
    twins: str = ""
    """Id of the part whose equal rows are the harmless twins."""
    wrong_targets: frozenset[int] = frozenset()
    """Rows, counted from 1, whose target belongs to another request; it is dropped."""
    file: str = ""
    """Stem of a file of the same rows in the folder `LOCAL`; by default the id."""


@dataclass(frozen=True)
class PublicSet:
    """A dataset on the Hub."""

    path: str
    parts: tuple[Part, ...]
    summary: str
    licence: str
    citation: str
    revision: str | None = None
    elsewhere: str = ""
    """Where a CSV file of the same rows can be had without an account."""


_JBB_COLUMNS = {"text": "Goal", "target": "Target", "category": "Category"}
_JBB_HARMFUL = Part(
    "harmful",
    "jbb-harmful",
    _JBB_COLUMNS,
    config="behaviors",
    twins="jbb-benign",
    file="jailbreakbench-harmful",
)
_JBB_BENIGN = Part(
    "benign",
    "jbb-benign",
    _JBB_COLUMNS,
    config="behaviors",
    harmful=False,
    wrong_targets=frozenset({11, 21}),
    file="jailbreakbench-benign",
)
_JBB_PAPER = "Chao et al. 2024, arXiv:2404.01318"


def _harmbench(config: str, summary: str, *, context: bool = False) -> PublicSet:
    columns = {"text": "prompt", "category": "category"}
    if context:
        columns["context"] = "context"
    return PublicSet(
        "walledai/HarmBench",
        (Part("train", f"harmbench-{config}", columns, config=config),),
        summary,
        "MIT",
        "Mazeika et al. 2024, arXiv:2402.04249",
        elsewhere="https://github.com/centerforaisafety/HarmBench "
        "(data/behavior_datasets/harmbench_behaviors_text_all.csv)",
    )


PUBLIC_SETS: dict[str, PublicSet] = {
    "advbench": PublicSet(
        "walledai/AdvBench",
        (
            Part(
                "train",
                "advbench",
                {"text": "prompt", "target": "target"},
                # Two 3-cycles and a swap, in every copy of the set.
                wrong_targets=frozenset({62, 64, 65, 282, 283, 284, 459, 460}),
            ),
        ),
        "AdvBench: 520 harmful, with targets (Hub)",
        "MIT",
        "Zou et al. 2023, arXiv:2307.15043",
        elsewhere="https://github.com/llm-attacks/llm-attacks "
        "(data/advbench/harmful_behaviors.csv)",
    ),
    "harmbench": _harmbench("standard", "HarmBench text, standard: 200 harmful (Hub)"),
    "harmbench-contextual": _harmbench(
        "contextual", "HarmBench text, contextual: 100 harmful (Hub)", context=True
    ),
    "harmbench-copyright": _harmbench("copyright", "HarmBench text, copyright: 100 harmful (Hub)"),
    "jailbreakbench": PublicSet(
        "JailbreakBench/JBB-Behaviors",
        (_JBB_HARMFUL, _JBB_BENIGN),
        "JailbreakBench: 100 harmful, 100 harmless twins, with targets (Hub)",
        "MIT",
        _JBB_PAPER,
    ),
    "jailbreakbench-harmful": PublicSet(
        "JailbreakBench/JBB-Behaviors",
        (_JBB_HARMFUL,),
        "JailbreakBench: the 100 harmful behaviours (Hub)",
        "MIT",
        _JBB_PAPER,
    ),
    "jailbreakbench-benign": PublicSet(
        "JailbreakBench/JBB-Behaviors",
        (_JBB_BENIGN,),
        "JailbreakBench: the 100 harmless behaviours (Hub)",
        "MIT",
        _JBB_PAPER,
    ),
    "strongreject": PublicSet(
        "walledai/StrongREJECT",
        (Part("train", "strongreject", {"text": "prompt", "category": "category"}),),
        "StrongREJECT: 313 harmful (Hub)",
        "MIT",
        "Souly et al. 2024, arXiv:2402.10260",
        elsewhere="https://github.com/alexandrasouly/strongreject",
    ),
    "catqa": PublicSet(
        "declare-lab/CategoricalHarmfulQA",
        (
            Part(
                "en",
                "catqa",
                {"text": "Question", "category": "Category"},
                file="catqa-english",
            ),
        ),
        "CatQA in English: 550 harmful questions of 11 categories (Hub)",
        "Apache-2.0",
        "Bhardwaj et al. 2024, arXiv:2402.11746",
    ),
    "maliciousinstruct": PublicSet(
        "walledai/MaliciousInstruct",
        (Part("train", "maliciousinstruct", {"text": "prompt"}),),
        "MaliciousInstruct: 100 harmful (Hub)",
        "CC-BY-SA-4.0",
        "Huang et al. 2023, arXiv:2310.06987",
        elsewhere="https://github.com/Princeton-SysML/Jailbreak_LLM",
    ),
    "tdc2023": PublicSet(
        "walledai/TDC23-RedTeaming",
        (Part("train", "tdc2023", {"text": "prompt"}),),
        "TDC 2023, red teaming track: 100 harmful (Hub)",
        "MIT",
        "Mazeika et al., NeurIPS 2023 Competition Track",
    ),
    "alpaca": PublicSet(
        "tatsu-lab/alpaca",
        (
            Part(
                "train[:520]",
                "alpaca",
                {"text": "instruction", "context": "input"},
                harmful=False,
            ),
        ),
        "Alpaca, the first 520 instructions: harmless, for fitting together with a harmful set "
        "(Hub)",
        "CC-BY-NC-4.0",
        "Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca",
    ),
    "xstest": PublicSet(
        "Paul/XSTest",
        (Part("train", "xstest", {"text": "prompt", "category": "type"}, harmful="label"),),
        "XSTest: 250 safe and 200 unsafe prompts, for over-refusal (Hub)",
        "CC-BY-4.0",
        "Röttger et al., NAACL 2024, arXiv:2308.01263",
        elsewhere="https://github.com/paul-rottger/exaggerated-safety (xstest_prompts.csv)",
    ),
    "or-bench-hard": PublicSet(
        "bench-llm/or-bench",
        (
            Part(
                "train",
                "or-bench-hard",
                {"text": "prompt", "category": "category"},
                config="or-bench-hard-1k",
                harmful=False,
                file="orbench-hard-1k",
            ),
        ),
        "OR-Bench-hard: 1,319 harmless requests that look harmful, for over-refusal (Hub)",
        "CC-BY-4.0",
        "Cui et al. 2024, arXiv:2405.20947",
        revision="e36d8b80e81837c8a8f264bbb2a49f1b32c7e272",
    ),
}


def load_public(name: str) -> list[Behavior]:
    """The rows of the public set `name`, in the order of its parts.

    They come from the Hub, or from files in the folder that the environment's `LOCAL` names.

    Raises:
        BadInput: it is gated, or neither cached nor reachable, or its columns have changed.
    """
    entry = PUBLIC_SETS[name]
    parts = [_local_rows(part) or _rows(name, entry, part) for part in entry.parts]
    return [row for rows in parts for row in rows]


def _local_rows(part: Part) -> list[Behavior] | None:
    """The same behaviours as from the Hub, from a file in the folder `LOCAL`; None without one."""
    if not os.environ.get(LOCAL):
        return None
    folder, stem = Path(os.environ[LOCAL]).expanduser(), part.file or part.id
    names = [f"{name}{suffix}" for name in (stem, stem.replace("-", "_")) for suffix in SUFFIXES]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        return None
    return [
        replace(
            row,
            id=f"{part.id}-{number}",
            target=None if number in part.wrong_targets else row.target,
            twin=f"{part.twins}-{number}" if part.twins else None,
            harmful=row.harmful if isinstance(part.harmful, str) else part.harmful,
        )
        for number, row in enumerate(read_file(path), start=1)
    ]


def _rows(name: str, entry: PublicSet, part: Part) -> Iterator[Behavior]:
    table = download(name, entry, part)
    wanted = list(part.columns.values())
    if isinstance(part.harmful, str):
        wanted.append(part.harmful)
    for column in wanted:
        if column not in table.column_names:
            raise BadInput(
                f"behaviour set '{name}' ({entry.path}) has no column '{column}' any more, only "
                f"{', '.join(table.column_names)}; pass a CSV file of it instead"
            )
    for number, row in enumerate(table, start=1):
        values = {field: row[column] for field, column in part.columns.items()}
        place = f"behaviour set '{name}', {part.split} row {number}"
        target = None if number in part.wrong_targets else values.get("target")
        fields = {
            "id": f"{part.id}-{number}",
            "text": with_context(values["text"], values.get("context")),
            "target": target or None,
            "category": values.get("category") or "",
            "twin": f"{part.twins}-{number}" if part.twins else None,
            "harmful": is_harmful(str(row[part.harmful]), place)
            if isinstance(part.harmful, str)
            else part.harmful,
        }
        yield behavior(fields, place)


def download(name: str, entry: PublicSet, part: Part) -> Any:
    """The split as a `datasets.Dataset`, from the cache where it is.

    Raises:
        BadInput: as `load_public`.
    """
    import datasets

    try:
        with _quiet():
            return datasets.load_dataset(
                entry.path, part.config, split=part.split, revision=entry.revision
            )
    # The loader raises errors of half a dozen libraries; whatever it is, the set is not there.
    except Exception as error:
        reason = " ".join(str(error).split())
        if "gated" in reason.lower():
            advice = (
                f"accept its terms on https://huggingface.co/datasets/{entry.path} and run "
                "'hf auth login'"
            )
        else:
            advice = "connect to the internet once; it is cached afterwards"
        csv = f" (from {entry.elsewhere})" if entry.elsewhere else ""
        raise BadInput(
            f"behaviour set '{name}' ({entry.path}) cannot be loaded: {reason[:200]}; {advice}, or "
            f"pass a CSV file of it{csv}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the Hub client's own lines about each retry, and without download bars."""
    import datasets

    logger = logging.getLogger("huggingface_hub")
    level, bars = logger.level, datasets.utils.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.utils.enable_progress_bars()
