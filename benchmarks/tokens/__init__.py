"""A study of control tokens (arXiv 2412.06748): thresholds, categories, and resulting texts.

It writes a page and no records; the attack is `attacks/control_tokens.py`.
"""

from __future__ import annotations

from pathlib import Path

from attacks.core.errors import BadInput
from benchmarks.common.threads import fixed_threads, threads_for
from benchmarks.paths import folder_name
from benchmarks.tokens import measure, page, plot
from benchmarks.tokens.results import Report
from benchmarks.tokens.subject import Options, load_subject

__all__ = ["Options", "Report", "tokens"]

_PAGE, _DATA, _PICTURE = "README.md", "data.json", "roc.png"


def tokens(options: Options) -> Path:
    """Write the page with its picture and numbers into `options.out`; returns the page's path.

    Raises:
        BadInput: an unknown model or set, overlapping or one-sided sets, a model without control
            tokens, or a folder with somebody else's page.
    """
    out = options.out or Path("runs") / f"tokens-{folder_name(options.model)}"
    if (out / _PAGE).exists() and not (out / _DATA).exists():
        raise BadInput(
            f"tokens: {out / _PAGE} was not written by `reroute tokens`; choose another --out"
        )
    subject = load_subject(options)
    with fixed_threads(threads_for(subject.model)):
        report = measure.study(subject, options)
    out.mkdir(parents=True, exist_ok=True)
    plot.draw(report, out / _PICTURE)
    (out / _DATA).write_text(report.to_json(), "utf-8")
    (out / _PAGE).write_text(page.write(report, _PICTURE), "utf-8")
    return out / _PAGE
