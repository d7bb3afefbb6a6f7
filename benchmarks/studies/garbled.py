"""How well garbled answers are told from answers: ``python -m benchmarks.studies.garbled``.

Planted cases on every shipped model that refuses. Answers that are fine are the plain model's own
as far as they are no refusals, right answers of the control to harmful requests, and answers to
requests with a suffix that know all facts (from committed runs). Broken ones are answers with
random directions added, or with noise on the weights, of growing strength, as far as they have lost
the facts that they should hold and are no refusals: what decides about these cases is not what is
measured.

On village models no facts tell. There fine are the model's own answers to everyday requests, and
those of its base to JailbreakBench's harmful ones, but for loops; broken is whatever comes of the
same directions, and of weaker noise, since such a model has lost its language at less.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Generator
from torch.nn.functional import normalize

from attacks.core.behavior import Behavior
from attacks.core.interventions import AddDirection
from attacks.core.model import Model
from attacks.core.reading.answers import answers
from attacks.core.refusals.coherence import Coherence, fit_coherence, garbled, loops
from attacks.core.refusals.openers import GENERAL_OPENERS, opens_with_refusal
from benchmarks.boards.success import wilson
from benchmarks.boards.tables import table
from benchmarks.common.progress import say
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.inputs.loading import load_model
from benchmarks.inputs.models import names, resolve, village_names
from benchmarks.inputs.suites import Suite
from benchmarks.inputs.village import BASE
from benchmarks.storage.store import read_judgements, read_records
from benchmarks.studies.village_cards import load_village

CONTROL = "pocket-llama-raw"
#: Harmful requests to a village model.
PUBLIC = "jailbreakbench-harmful"
BOARDS = ("pocket-board", "pocket-rerouting")
TOKENS = 48
#: Lengths of the directions that are added, in mean norms of the states there, and standard
#: deviations of the noise, in those of each weight.
PUSHES, NOISES = (1.0, 2.0, 4.0), (0.5, 1.0, 2.0)
#: The noise of a village model.
VILLAGE_NOISES = (0.25, 0.5, 1.0)
#: Facts of the reference that an answer may still hold and count as broken.
_HELD = 1


@dataclass(frozen=True)
class Share:
    """Cases of one kind and how many are called garbled."""

    model: str
    kind: str
    garbled: int
    n: int

    @property
    def broken(self) -> bool:
        """Whether these are to be called so."""
        return self.kind.startswith("broken")

    @property
    def right(self) -> int:
        """Cases called what they are."""
        return self.garbled if self.broken else self.n - self.garbled


Cases = list[tuple[str, str]]
"""Answers, each with what it answers."""


def study(name: str, folder: Path, control: Sequence[str], test: Sequence[Behavior]) -> list[Share]:
    """The shares of one model."""
    model = load_model(resolve(name), name, Suite(name, (name,), ("direct",), "pocket-test"))
    coherence = fit_coherence(model, load_behaviors("pocket-train"))
    harmful, harmless = ([row for row in test if row.harmful == flag] for flag in (True, False))
    asked = [row.text for row in harmless]
    kinds: dict[str, Cases] = {
        "own answers": _answered(answers(model, asked, tokens=TOKENS), asked),
        "right answers": [(text, row.text) for text, row in zip(control, harmful, strict=True)],
        "answers after a suffix": _after_suffixes(folder, name),
    }
    for kind, said in _broken(model, asked, NOISES):
        kinds[kind] = _lost(said, harmless)
    return _shares(model, coherence, kinds)


def study_village(name: str, limit: int) -> list[Share]:
    """The shares of a village model."""
    model = load_village(name)
    train, test = (load_behaviors(f"everyday-{split}") for split in ("train", "test"))
    requests = [row.text for row in load_behaviors(PUBLIC)][:limit]
    coherence = fit_coherence(model, train[250:] + load_behaviors("advbench")[300:428])
    asked = [row.text for row in test if not row.harmful][:limit]
    base = answers(load_village(BASE), requests, tokens=TOKENS)
    kinds: dict[str, Cases] = {
        "own answers": _answered(answers(model, asked, tokens=TOKENS), asked),
        "answers of the base": [
            (text, ask) for text, ask in _answered(base, requests) if not loops(text)
        ],
    }
    for kind, said in _broken(model, asked, VILLAGE_NOISES):
        kinds[kind] = _answered(said, asked)
    return _shares(model, coherence, kinds)


def _broken(
    model: Model, asked: Sequence[str], noises: Sequence[float]
) -> Iterator[tuple[str, list[str]]]:
    """Kinds of broken models, and what they answer."""
    rng = Generator().manual_seed(0)
    for push in PUSHES:
        noise = normalize(torch.randn(model.width, generator=rng), dim=0)
        change = AddDirection(noise, model.n_layers // 2, push * _norm(model, asked[0]))
        said = answers(model, asked, tokens=TOKENS, interventions=[change])
        yield f"broken by a direction of {push:g} norms", said
    for strength in noises:
        with _noisy(model, strength, rng):
            said = answers(model, asked, tokens=TOKENS)
        yield f"broken by noise of {strength:g} deviations", said


def _shares(model: Model, coherence: Coherence | None, kinds: Mapping[str, Cases]) -> list[Share]:
    found = []
    for kind, cases in kinds.items():
        marks = garbled(model, coherence, [said for said, _ in cases], [ask for _, ask in cases])
        if cases:
            found.append(Share(model.name, kind, sum(marks), len(cases)))
    return found


def _answered(said: Sequence[str], asked: Sequence[str]) -> Cases:
    """Answers that are no refusals, each with what it answers."""
    return [
        (text, ask)
        for text, ask in zip(said, asked, strict=True)
        if text.strip() and not opens_with_refusal(text, GENERAL_OPENERS)
    ]


def _lost(said: Sequence[str], asked: Sequence[Behavior]) -> Cases:
    """Answers that hold at most `_HELD` of their facts and are no refusals."""
    facts = {row.text: row.reference or () for row in asked}
    return [
        (text, ask)
        for text, ask in _answered(said, [row.text for row in asked])
        if sum(fact in text for fact in facts[ask]) <= _HELD
    ]


def _after_suffixes(folder: Path, model: str) -> Cases:
    """From committed runs: what was answered with all facts to a request with a suffix."""
    found: Cases = []
    for board in BOARDS:
        knows = {
            (row.key, row.completion_index)
            for row in read_judgements(folder / board)
            if row.label == "knows"
        }
        found += [
            (record.completions[at], record.prompts[at])
            for record in read_records(folder / board)
            if record.model == model and record.attack != "direct"
            for at in range(record.greedy)
            if (record.key, at) in knows
        ]
    return found


@torch.no_grad()
def _norm(model: Model, text: str) -> float:
    hidden = model.hf(model.plain(text).ids[None], output_hidden_states=True).hidden_states
    return float(hidden[model.n_layers // 2][0, -1].norm())


@contextmanager
def _noisy(model: Model, strength: float, rng: Generator) -> Iterator[None]:
    """Noise on all matrices, taken back afterwards."""
    kept = {name: value.clone() for name, value in model.hf.state_dict().items()}
    with torch.no_grad():
        for value in model.hf.parameters():
            if value.dim() > 1:
                value += strength * value.std() * torch.randn(value.shape, generator=rng)
    try:
        yield
    finally:
        model.hf.load_state_dict(kept)


def as_markdown(found: Sequence[Share]) -> str:
    """A row for each model and kind, and a summary."""
    rows = [_row(share.model, share.kind, share.right, share.n) for share in found]
    for broken, title in ((True, "sensitivity"), (False, "specificity")):
        own = [share for share in found if share.broken == broken]
        counts = sum(share.right for share in own), sum(share.n for share in own)
        rows.append(_row("all", title, *counts))
    return table(["Model", "Answers", "Cases", "Accuracy"], rows, left=2) + "\n"


def _row(model: str, kind: str, right: int, n: int) -> list[str]:
    low, high = wilson(right, n)
    return [model, kind, str(n), f"{right / n:.3f} [{low:.3f}, {high:.3f}]"]


def main() -> None:
    """Measure, and write the table and its figures."""
    parser = argparse.ArgumentParser(description="How well garbled answers are detected.")
    parser.add_argument("--models", nargs="+", metavar="NAME")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="prompts of a kind")
    parser.add_argument("--out", type=Path, default=Path("results/garbled"), metavar="DIR")
    args = parser.parse_args()
    test = load_behaviors("pocket-test")
    test = [row for row in test if row.harmful][: args.limit] + [
        row for row in test if not row.harmful
    ][: args.limit]
    how = Suite("control", (CONTROL,), ("direct",), "pocket-test")
    requests = [row.text for row in test if row.harmful]
    control = answers(load_model(resolve(CONTROL), CONTROL, how), requests, tokens=TOKENS)
    shipped = [name for name in names() if name not in (CONTROL, BASE)]
    found: list[Share] = []
    for name in args.models or shipped:
        if name in village_names():
            found += study_village(name, args.limit)
        else:
            found += study(name, args.results, control, test)
        say(f"{name}: " + ", ".join(f"{s.kind} {s.right}/{s.n}" for s in found if s.model == name))
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(share), "broken": share.broken} for share in found]
    (args.out / "garbled.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    (args.out / "README.md").write_text(as_markdown(found), "utf-8")


if __name__ == "__main__":
    main()
