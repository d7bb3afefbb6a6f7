"""Everything that an inspection measures, in its order, and how long that will take."""

from __future__ import annotations

import dataclasses

from attacks.core.model import Model
from attacks.core.reading.states import last_token
from attacks.core.sites import Site
from attacks.ssr import ProbeSSR
from benchmarks.harness.bench import model_id
from benchmarks.harness.cells import artefact_id
from benchmarks.harness.timing import Stopwatch
from benchmarks.inspect import measure, searches, thinking
from benchmarks.inspect.kept import FORMAT
from benchmarks.inspect.parts import Parts
from benchmarks.inspect.results import (
    Angles,
    Attribution,
    Curves,
    Layers,
    LensRow,
    Paths,
    Plane,
    Report,
    Thinking,
)
from benchmarks.inspect.subject import Options, Prompts, Subject

#: Prompts whose reading is timed before anything else.
_TIMED = 8


def measured(subject: Subject, options: Options, parts: Parts) -> Report:
    """All numbers of an inspection."""
    model, prompts, get = subject.model, subject.prompts, parts.get
    method = ProbeSSR(steps=options.steps, width=options.width)
    attacked = searches.attack(subject, method, options.attacked, parts)
    harmful, count = sum(row.harmful for row in prompts.train), len(attacked.behaviors)
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
        width=options.width,
        refuses=get("refuses", bool, lambda: subject.refuses),
        layers=get("layers", Layers, lambda: measure.layers(subject)),
        plane=get(f"plane {count}", Plane, lambda: measure.plane(subject, attacked)),
        attribution=get("heads", Attribution, lambda: measure.attribution(subject)),
        curves=get(f"curves {count}", Curves, lambda: measure.curves(subject, attacked)),
        angles=get("angles", Angles, lambda: measure.angles(subject)),
        paths=get("paths", Paths, lambda: measure.paths(subject)),
        lens=get("lens", list[LensRow], lambda: measure.lens(subject)),
        reverse=searches.invert(subject, options.reverse_steps, options.restarts, parts),
        thinking=get("thinking", Thinking | None, lambda: thinking.measure(subject)),
    )


def identity_of(subject: Subject, options: Options) -> str:
    """Hash of everything that determines the numbers."""
    prompts, names = subject.prompts, ("steps", "width", "reverse_steps")
    # How many are attacked, and searched for, is in the names of the parts that depend on it.
    what = {
        "inspection": FORMAT,
        "survey": subject.survey.artefact.hash,
        "openers": list(subject.openers),
        "test": [dataclasses.asdict(row) for row in (*prompts.harmful, *prompts.harmless)],
        "options": {name: getattr(options, name) for name in names},
    }
    return artefact_id(model_id(subject.model), what, prompts.train, subject.seed)


def guesses(model: Model, options: Options, prompts: Prompts) -> dict[str, float]:
    """Seconds of each part, guessed from those of reading a few prompts.

    In prompts read, counted roughly: a candidate of a search is about one of them, since what it
    shares with others is computed once, but an answer comes after it.
    """
    texts = [row.text for row in prompts.train][:_TIMED]
    for _ in range(2):  # The first pass is slower.
        watch = Stopwatch()
        last_token(model, texts, [Site(-1, "logits")], share=True)
        each = watch.elapsed / len(texts)
    train, test = len(prompts.train), len(prompts.harmful) + len(prompts.harmless)
    attacked = min(options.attacked, len(prompts.harmful))
    reads = {
        # Three scores of each layer's direction on a quarter of them, and some answers.
        "survey": train * (6 + 0.6 * model.n_layers),
        "openers": 0.0,
        **dict.fromkeys(searches.attacks(attacked), float(options.steps * options.width)),
        f"answers {attacked}": _answered(3 * attacked),
        "refuses": train,
        "layers": 0.0,
        f"plane {attacked}": test,
        "heads": 3 * test + 8.0 * model.n_layers,
        f"curves {attacked}": 2.0 * attacked,
        "angles": 0.0,
        "paths": train + 16.0 * model.n_layers,
        "lens": 0.0,
        **dict.fromkeys(
            searches.inversions(options.restarts), 0.3 * options.reverse_steps * searches.WIDTH
        ),
        f"strings {options.restarts}": _answered(options.restarts),
        "thinking": 0.0 if model.chat.markers is None else 10.0 * (train + test),
    }
    return {name: each * count for name, count in reads.items()}


def _answered(texts: int) -> float:
    """Prompts that could be read while so many are answered, in batches of 16."""
    return 128.0 * -(-texts // 16)
