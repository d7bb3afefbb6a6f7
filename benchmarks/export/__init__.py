"""Results in the formats of other projects: JailbreakBench, HarmBench, Inspect, model cards.

Prompts and answers leave the results folder only here, and only when someone exports their own
records. Needs no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from attacks.core.errors import BadInput
from benchmarks.export.attempts import read_export

Format = Literal["jailbreakbench", "harmbench", "inspect", "model-card"]
FORMATS: tuple[Format, ...] = get_args(Format)

#: Formats whose files hold no prompts and no answers.
WITHOUT_TEXT: tuple[Format, ...] = ("model-card",)


def export(
    folder: Path,
    style: Format,
    out: Path,
    *,
    judge: str | None = None,
    behaviors: str | None = None,
) -> tuple[list[Path], list[str]]:
    """Writes the results of a folder in another project's format.

    Args:
        folder: of results.
        style: whose format.
        out: folder to write into.
        judge: whose verdicts; may be left out where only one has judged.
        behaviors: see `Context`.

    Returns:
        The files, and a line on each kind of record that the format cannot hold.

    Raises:
        BadInput: no records, no such judge, a package that is missing, nothing to export, or a
            folder that cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out '{out}' is a file; name a folder")
    try:
        if style == "model-card":
            from benchmarks.export.model_card import write_cards

            return write_cards(folder, out, judge), []
        found = read_export(folder, judge, behaviors)
        if style == "inspect":
            from benchmarks.export.inspect_log import write_logs

            return write_logs(found, out), []
        if style == "harmbench":
            from benchmarks.export.harmbench import write_cases

            return write_cases(found, out)
        from benchmarks.export.jailbreakbench import write_artifacts

        return write_artifacts(found, out)
    except OSError as error:
        raise BadInput(f"cannot write into '{out}': {error.strerror}") from error
