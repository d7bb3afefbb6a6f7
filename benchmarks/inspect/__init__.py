"""Analysis of one model: where it represents refusal, and what attacks do to that.

It writes a page and no records; measurements of the suite itself are in `studies`.
"""

from __future__ import annotations

from pathlib import Path

from attacks.core.errors import BadInput
from benchmarks.common.threads import fixed_threads, threads_for
from benchmarks.inputs.loading import check_model
from benchmarks.inputs.models import resolve
from benchmarks.inspect import measure, page, plots, searches, thinking
from benchmarks.inspect.results import Report
from benchmarks.inspect.subject import Options, Subject, load_prompts, load_subject
from benchmarks.paths import folder_name

__all__ = ["Options", "Report", "inspect"]

_PAGE, _DATA = "README.md", "data.json"


def inspect(options: Options) -> Path:
    """Write the page with its pictures and numbers into `options.out`; returns the page's path.

    Raises:
        BadInput: an unknown model or set, overlapping or too few behaviours, damaged artefacts, or
            a folder with somebody else's page.
    """
    prompts = load_prompts(options)
    check_model(resolve(options.model), options.model, options)
    out = options.out or Path("runs") / f"inspect-{folder_name(options.model)}"
    if (out / _PAGE).exists() and not (out / _DATA).exists():
        raise BadInput(
            f"inspect: {out / _PAGE} was not written by `reroute inspect`; choose another --out"
        )
    folders = [out / "artefacts", *([options.artefacts] if options.artefacts else [])]
    subject = load_subject(options, prompts, folders)
    with fixed_threads(threads_for(subject.model)):
        report = measured(subject, options)
    pictures = plots.draw(report, out)
    (out / _DATA).write_text(report.to_json(), "utf-8")
    (out / _PAGE).write_text(page.write(report, pictures), "utf-8")
    return out / _PAGE


def measured(subject: Subject, options: Options) -> Report:
    """All numbers of an inspection."""
    model, prompts = subject.model, subject.prompts
    attacked = searches.attack(subject, options.steps, options.attacked)
    harmful = sum(row.harmful for row in prompts.train)
    return Report(
        model=model.name,
        revision=model.revision,
        dtype=model.dtype,
        system=model.system,
        train=prompts.train_name,
        behaviors=prompts.test_name,
        seed=subject.seed,
        n_train=[harmful, len(prompts.train) - harmful],
        n_test=[len(prompts.harmful), len(prompts.harmless)],
        steps=options.steps,
        refuses=subject.refuses,
        layers=measure.layers(subject),
        plane=measure.plane(subject, attacked),
        attribution=measure.attribution(subject),
        curves=measure.curves(subject, attacked),
        angles=measure.angles(subject),
        paths=measure.paths(subject),
        lens=measure.lens(subject),
        reverse=searches.invert(subject, options.reverse_steps, options.restarts),
        thinking=thinking.measure(subject),
    )
