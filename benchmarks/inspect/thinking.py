"""The numbers of the section on refusal while a model thinks (arXiv 2510.06036)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields

import torch
from scipy.stats import spearmanr
from torch import Generator, Tensor

from attacks.attack import Behavior
from attacks.core.analysis.cliff import (
    LEAST,
    Cliff,
    accuracy,
    aligned_mean,
    lens_curves,
    measure_cliff,
    refusal_curves,
    refusal_probes,
    resample,
)
from attacks.core.analysis.heads import Heads, refusal_axis, strongest, written_for_refusal
from attacks.core.analysis.transcripts import Transcript, transcribe
from attacks.core.errors import BadInput
from attacks.core.interventions import ScaleHeads
from attacks.core.reading.answers import answers
from attacks.core.reading.states import last_of
from attacks.core.refusals.openers import OPENER_TOKENS, opens_with_refusal, refusal_tokens
from attacks.core.sites import Site
from benchmarks.inspect.results import Ablated, Matrix, Thinking
from benchmarks.inspect.subject import Subject

#: Layers that are probed, and prompts of a kind that are thought about, at most.
_LAYERS, _PROMPTS = 6, 64
#: Last tokens of thinking that are shown, beside those that close it.
_LATE = 16
#: Heads that are ablated, as a share of all; prompts of a kind asked then; random choices.
_SHARE, _ASKED, _DRAWS = 0.1, 24, 3

Curves = list[dict[int, Tensor]]


def measure(subject: Subject) -> Thinking | None:
    """All of the section; None where the model does not think before it answers."""
    model, prompts = subject.model, subject.prompts
    if model.chat.markers is None:
        return None
    kinds = ([b for b in prompts.train if b.harmful == flag] for flag in (True, False))
    train = _transcribe(subject, [row for rows in kinds for row in rows[:_PROMPTS]])
    if not any(transcript.thinks for transcript in train):
        return None
    try:
        return _measure(subject, [transcript for transcript in train if transcript.thinks])
    except BadInput as error:
        return Thinking([], [], [], {}, 0, {}, {}, {}, {}, [], [], [], str(error))


def _measure(subject: Subject, train: Sequence[Transcript]) -> Thinking:
    model, prompts = subject.model, subject.prompts
    rng = Generator().manual_seed(subject.seed)
    refused, answered = (
        [transcript for transcript in train if transcript.refused == flag] for flag in (True, False)
    )
    last = model.n_layers - 1
    layers = sorted({round(last * index / (_LAYERS - 1)) for index in range(_LAYERS)})
    probes = refusal_probes(model, refused, answered, layers, rng=rng)
    openers = _openers(subject, refused, answered)
    rows = [*prompts.harmful[:_PROMPTS], *prompts.harmless[:_PROMPTS]]
    test = [transcript for transcript in _transcribe(subject, rows) if transcript.thinks]
    groups = {
        "refused": [t for t in test if t.harmful and t.refused],
        "answered": [t for t in test if t.harmful and not t.refused],
        "harmless": [t for t in test if not t.harmful and not t.refused],
    }
    groups = {name: members for name, members in groups.items() if members}
    curves = {name: refusal_curves(model, found, probes) for name, found in groups.items()}
    lenses = {name: lens_curves(model, found, layers, *openers) for name, found in groups.items()}
    cliffs = {
        name: [
            [
                measure_cliff(curve[layer], t.closing)
                for curve, t in zip(found, groups[name], strict=True)
            ]
            for layer in layers
        ]
        for name, found in curves.items()
    }
    harmful = [*groups.get("refused", []), *groups.get("answered", [])]
    both = "refused" in groups and "answered" in groups
    matched = accuracy(model, probes, harmful) if both else {}
    axis = refusal_axis(model, refused, answered, last)
    written = written_for_refusal(model, groups.get("answered") or harmful, axis)
    width = max(t.closing for t in test) + _LATE
    return Thinking(
        layers,
        [probes[layer].accuracy for layer in layers],
        [matched.get(layer, float("nan")) for layer in layers],
        {name: len(members) for name, members in groups.items()},
        max(transcript.closing for transcript in test),
        {name: _whole(found, layers) for name, found in curves.items()},
        {name: _late(found, layers, width) for name, found in curves.items()},
        {name: _late(found, layers, width) for name, found in lenses.items()},
        {name: [_mean(row) for row in rows] for name, rows in cliffs.items()},
        [
            _agreement([c for n in ("refused", "answered") if n in cliffs for c in cliffs[n][at]])
            for at in range(len(layers))
        ],
        written.tolist(),
        _ablations(subject, written, rng),
    )


def _transcribe(subject: Subject, rows: Sequence[Behavior]) -> list[Transcript]:
    return transcribe(subject.model, rows, openers=subject.openers)


def _openers(
    subject: Subject, refused: Sequence[Transcript], answered: Sequence[Transcript]
) -> tuple[Tensor, Tensor]:
    """Ids (K,) that open refusals after thinking, and ids that open answers."""
    site = Site(-1, "logits")
    no, yes = (
        last_of(subject.model, [t.ids for t in rows], [site])[site].log_softmax(1)
        for rows in (refused, answered)
    )
    return refusal_tokens(no, yes, most=8), refusal_tokens(yes, no, most=8)


def _whole(curves: Curves, layers: Sequence[int]) -> Matrix:
    """(K, 100) mean of the curves, stretched to one length."""
    rows = [torch.stack([resample(c[layer]) for c in curves]).mean(0) for layer in layers]
    return [row.tolist() for row in rows]


def _late(curves: Curves, layers: Sequence[int], width: int) -> Matrix:
    """(K, W) mean of the ends of the curves."""
    rows = [aligned_mean([c[layer] for c in curves])[0][-width:] for layer in layers]
    return [row.tolist() for row in rows]


def _mean(cliffs: Sequence[Cliff]) -> dict[str, float]:
    rows = [asdict(cliff) for cliff in cliffs]
    return {f.name: sum(row[f.name] for row in rows) / len(rows) for f in fields(Cliff)}


def _agreement(cliffs: Sequence[Cliff]) -> float:
    """Spearman correlation of ranking by size of the cliff and by lowest final score."""
    if len(cliffs) < LEAST:
        return float("nan")
    return float(spearmanr([c.drop for c in cliffs], [-c.final for c in cliffs]).statistic)


def _ablations(subject: Subject, written: Tensor, rng: Generator) -> list[Ablated]:
    """Refusals as the model is, and without the heads that write most against and for refusing."""
    count = max(1, round(_SHARE * written.numel()))
    against, towards = strongest(written, count, against=True), strongest(written, count)
    random = [
        _refused(subject, strongest(torch.rand(written.shape, generator=rng), count))
        for _ in range(_DRAWS)
    ]
    return [
        Ablated("none", [], *_refused(subject, ())),
        Ablated(
            "writing most against refusal", [list(h) for h in against], *_refused(subject, against)
        ),
        Ablated(
            "writing most for refusal", [list(h) for h in towards], *_refused(subject, towards)
        ),
        Ablated(
            f"{count} at random, mean of {_DRAWS}",
            [],
            *(sum(x) / _DRAWS for x in zip(*random, strict=True)),
        ),
    ]


def _refused(subject: Subject, heads: Heads) -> tuple[float, float]:
    """Shares of harmful and of harmless test prompts that are refused without `heads`."""
    changes = [ScaleHeads(heads)] if heads else []
    shares = []
    for rows in (subject.prompts.harmful[:_ASKED], subject.prompts.harmless[:_ASKED]):
        texts = [row.text for row in rows]
        said = answers(subject.model, texts, tokens=OPENER_TOKENS, interventions=changes)
        shares.append(sum(opens_with_refusal(text, subject.openers) for text in said) / len(said))
    return shares[0], shares[1]
