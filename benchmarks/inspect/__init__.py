"""Analysis of one model: where it represents refusal, and what attacks do to that.

It writes a page and no records; measurements of the suite itself are in `studies`.
"""

from __future__ import annotations

from pathlib import Path

from attacks.core.errors import BadInput
from benchmarks.common.progress import say
from benchmarks.common.threads import fixed_threads, threads_for
from benchmarks.inputs.loading import check_model, load_model
from benchmarks.inputs.models import resolve
from benchmarks.inspect import page, plots
from benchmarks.inspect.course import Course, clock
from benchmarks.inspect.kept import Kept
from benchmarks.inspect.measuring import guesses, identity_of, measured
from benchmarks.inspect.parts import Parts
from benchmarks.inspect.results import Report
from benchmarks.inspect.subject import Options, fit_subject, load_prompts

__all__ = ["Options", "Report", "inspect"]

_PAGE, _DATA, _ARTEFACTS = "README.md", "data.json", "artefacts"


def inspect(options: Options) -> Path:
    """Write the page with its pictures and numbers into `options.folder`; returns the page's path.

    What has been fitted and measured is kept as it goes along, so an inspection that was
    interrupted goes on where it stopped.

    Raises:
        BadInput: an unknown model or set, overlapping or too few behaviours, damaged artefacts, or
            a folder with somebody else's page, or with texts where there are to be none.
    """
    prompts = load_prompts(options)
    check_model(resolve(options.model), options.model, options)
    out, folders = options.folder, _working(options)
    if (out / _PAGE).exists() and not (out / _DATA).exists():
        raise BadInput(
            f"inspect: {out / _PAGE} was not written by `reroute inspect`; choose another --out"
        )
    model = load_model(resolve(options.model), options.model, options)
    with fixed_threads(threads_for(model)):
        course = Course(f"inspect {model.name}", guesses(model, options, prompts))
        with course.shown():
            subject = fit_subject(model, options, prompts, folders, course)
            kept = Kept(folders, identity_of(subject, options))
            for name in course.left:
                if name in kept:
                    course.done(name, kept.seconds(name))
            report = measured(subject, options, Parts(kept, course))
    if not options.texts:
        report = report.shareable()
    pictures = plots.draw(report, out)
    (out / _DATA).write_text(report.to_json(), "utf-8")
    (out / _PAGE).write_text(page.write(report, pictures), "utf-8")
    say(f"inspect: what was measured took {clock(kept.seconds())} after fitting")
    return out / _PAGE


def _working(options: Options) -> list[Path]:
    """Folders of what is fitted and measured, which holds texts; the first is written to.

    Raises:
        BadInput: it would be inside a page that is to have no texts.
    """
    out, given = options.folder, [options.artefacts] if options.artefacts else []
    if options.texts:
        return [out / _ARTEFACTS, *given]
    first = options.working / _ARTEFACTS
    if (out / _ARTEFACTS).exists() or first.resolve().is_relative_to(out.resolve()):
        raise BadInput(
            f"inspect: {out / _ARTEFACTS} holds texts of prompts and answers; without texts choose "
            "another --out (with --artefacts DIR nothing is fitted or measured again)"
        )
    return [first, *given]
