"""The numbers of an inspection, section by section."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import cosine_similarity

from attacks.core.analysis.attribution import (
    answer_direction,
    head_attribution,
    layer_attribution,
    logit_lens,
)
from attacks.core.analysis.faithfulness import mlp_faithfulness
from attacks.core.analysis.survey import choose_heads, reads_sets
from attacks.core.errors import BadInput
from benchmarks.inspect import linear
from benchmarks.inspect.results import (
    Angles,
    Attribution,
    Curves,
    Layers,
    LensRow,
    Move,
    Path,
    Paths,
    Plane,
)
from benchmarks.inspect.searches import Attacked
from benchmarks.inspect.subject import Subject, array

_DIMENSION = 5
_DRAWS = 50
_LENS_TOKENS = 8


def layers(subject: Subject) -> Layers:
    """Probes and directions by layer; effects are left out where nothing is refused."""
    reports, directions = subject.survey.layers, subject.directions
    return Layers(
        [report.accuracy for report in reports],
        [report.separation for report in reports],
        [report.log_loss for report in reports],
        [report.effect if subject.refuses else None for report in reports],
        [report.kl if subject.refuses else None for report in reports],
        subject.layer,
        subject.survey.ablation_layer,
        reads_sets(subject.survey),
        (directions @ directions.T).tolist(),
    )


def plane(subject: Subject, attacked: Attacked) -> Plane:
    """Harmful and harmless test prompts in two dimensions, and where attacks carry some of them."""
    layer, count = subject.layer, len(attacked.behaviors)
    harmful, harmless = array(subject.harmful[layer]), array(subject.harmless[layer])
    pca = linear.fit_pca(harmful, harmless)
    after = subject.states(attacked.found)[layer]
    before = subject.harmful[layer][:count]
    moves = zip(
        [behavior.id for behavior in attacked.behaviors],
        pca(array(before)).tolist(),
        pca(array(after)).tolist(),
        subject.probe(before).tolist(),
        subject.probe(after).tolist(),
        *(attacked.refused[kind] for kind in ("plain", "random", "found")),
        strict=True,
    )
    return Plane(
        layer,
        pca.explained.tolist(),
        pca(harmful).tolist(),
        pca(harmless).tolist(),
        [Move(*move) for move in moves],
    )


def attribution(subject: Subject) -> Attribution:
    """Where refusal is written: heads and depths.

    What a family of models does not allow is left out, with a note that says why.
    """
    model = subject.model
    refuse, accept = subject.tokens
    opening = [_names(subject, ids) for ids in (refuse, accept)]
    if not len(refuse) or not len(accept):
        missing = "refusals" if not len(refuse) else "answers"
        return _left_out(opening, f"no token sets {missing} apart: there is nothing to attribute")
    harmful, harmless = (
        [row.text for row in rows] for rows in (subject.prompts.harmful, subject.prompts.harmless)
    )
    direction = answer_direction(model, refuse.tolist(), accept.tolist())
    try:
        heads, patching = choose_heads(model, subject.prompts.train, (), openers=refuse)
        return Attribution(
            opening[0],
            opening[1],
            layer_attribution(model, harmful, direction).tolist(),
            layer_attribution(model, harmless, direction).tolist(),
            patching.tolist(),
            head_attribution(model, harmful, direction).tolist(),
            [list(head) for head in heads],
        )
    except BadInput as error:
        return _left_out(opening, str(error))


def curves(subject: Subject, attacked: Attacked) -> Curves:
    """Cosines of each group of prompts with each layer's direction."""
    count = len(attacked.behaviors)
    texts = [behavior.text for behavior in attacked.behaviors]
    states = {
        "harmless": subject.harmless[:, :count],
        "harmful": subject.harmful[:, :count],
        "random": subject.states(attacked.random),
        "ablation": subject.states(texts, interventions=[subject.ablation]),
        "ssr": subject.states(attacked.found),
    }
    ids = [behavior.id for behavior in attacked.behaviors]
    return Curves(ids, {name: _cosines(subject, rows) for name, rows in states.items()})


def angles(subject: Subject) -> Angles:
    """Between the main subspaces of harmful and harmless activations, and what to expect."""
    half = len(subject.prompts.harmful) // 2
    half = min(half, len(subject.prompts.harmless) // 2)
    dimension = min(_DIMENSION, half - 1, subject.model.width)
    full: list[list[float]] = []
    across: list[list[float]] = []
    within: list[list[float]] = []
    for harmful, harmless in zip(array(subject.harmful), array(subject.harmless), strict=True):
        # Halves are every other one, since sets are often sorted by subject; and one half of each
        # kind, so that no prompt meets its twin and both controls have equally many prompts.
        pairs = (
            (harmful, harmless),
            (harmful[::2], harmless[1::2]),
            (harmful[::2], harmful[1::2]),
        )
        for pair, found in zip(pairs, (full, across, within), strict=True):
            first, second = (linear.principal_subspace(states, dimension) for states in pair)
            found.append(linear.angles(first, second).tolist())
    rng = np.random.default_rng(subject.seed)
    chance = linear.chance_angles(subject.model.width, dimension, _DRAWS, rng)
    return Angles(dimension, subject.model.width, full, across, within, chance.tolist(), _DRAWS)


def paths(subject: Subject) -> Paths:
    """Whether the refusal direction in each MLP works through the projection that reads it.

    What a family of models does not allow is left out, with a note that says why.
    """
    prompts, refuse = subject.prompts, subject.tokens[0]
    if not len(refuse):
        return Paths([], "no token sets refusals apart: there is nothing to carry over")
    by_id = {row.id: row for row in prompts.harmless}
    pairs = [(row, by_id[row.twin]) for row in prompts.harmful if row.twin in by_id]
    pairs = pairs or list(zip(prompts.harmful, prompts.harmless, strict=False))
    harmful, harmless = ([row.text for row in side] for side in zip(*pairs, strict=True))
    rng = Generator().manual_seed(subject.seed)
    try:
        found = mlp_faithfulness(
            subject.model, prompts.train_texts, (harmful, harmless), refuse, rng=rng
        )
    except BadInput as error:
        return Paths([], str(error))
    rows = []
    for layer, row in enumerate(found):
        numbers = {name: value for name, value in vars(row).items() if name != "effects"}
        share = {name: effect.share for name, effect in row.effects.items()}
        flips = {name: effect.flips for name, effect in row.effects.items()}
        rows.append(Path(layer, share=share, flips=flips, **numbers))
    return Paths(rows)


def lens(subject: Subject) -> list[LensRow]:
    """The tokens that each direction speaks for and against; none where the norm is not known."""
    try:
        logits = logit_lens(subject.model, subject.directions)
    except BadInput:
        return []
    # Some models have more rows than their tokenizer has tokens.
    logits = logits[:, : len(subject.model.chat.tokenizer)]
    rows = []
    for layer, values in enumerate(logits):
        high, low = values.topk(_LENS_TOKENS), values.topk(_LENS_TOKENS, largest=False)
        rows.append(
            LensRow(
                layer,
                _names(subject, high.indices),
                high.values.tolist(),
                _names(subject, low.indices),
                low.values.tolist(),
            )
        )
    return rows


def _names(subject: Subject, ids: Tensor) -> list[str]:
    return subject.model.chat.decode([[int(index)] for index in ids])


def _cosines(subject: Subject, states: Tensor) -> list[list[float]]:
    """(N, L) of activations (L, N, D) with each layer's direction."""
    found = cosine_similarity(states, subject.directions.unsqueeze(1), dim=-1)
    rows: list[list[float]] = torch.nan_to_num(found).T.tolist()
    return rows


def _left_out(opening: list[list[str]], note: str) -> Attribution:
    refuse, accept = opening
    return Attribution(refuse, accept, [], [], [], [], [], note)
