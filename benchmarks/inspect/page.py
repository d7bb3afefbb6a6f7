"""The page of an inspection, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import numpy as np

from attacks.core.analysis.survey import LEAST_ACCURACY
from benchmarks.inspect import page_refusal, page_thinking
from benchmarks.inspect.markdown import code, folded
from benchmarks.inspect.markdown import number as _number
from benchmarks.inspect.markdown import table as _table
from benchmarks.inspect.results import GROUPS, Plane, Report

_ALT = {
    "layers": "Probe accuracy, separation and effect of ablation by layer",
    "cosines": "Cosines between the directions of the layers",
    "plane": "Prompts in the plane of two principal components, with arrows for attacks",
    "heads": "Effects of single heads",
    "depth": "Evidence for refusing by depth",
    "curves": "Cosine with the refusal direction by layer, for five groups of prompts",
    "angles": "Principal angles by layer",
    "cliff": "Refusal score over the thinking and at its end, at two depths",
}


def write(report: Report, pictures: Mapping[str, str]) -> str:
    """The page; `pictures` are file names by what they show.

    All text from models, tokenizers and behaviours goes through `code`.
    """
    figures = {name: f"![{_ALT[name]}]({file})" for name, file in pictures.items()}
    sections = (
        _head(report),
        page_refusal.layers(report, figures),
        _cosines(figures),
        _plane(report, figures),
        page_refusal.attribution(report, figures),
        _curves(report, figures),
        _angles(report, figures),
        page_refusal.paths(report),
        page_thinking.section(report.thinking, figures),
        page_refusal.lens(report),
        _reverse(report),
        ["All plotted numbers are in [data.json](data.json)."],
    )
    return "\n\n".join(block for section in sections for block in section) + "\n"


def _head(report: Report) -> list[str]:
    (fit_bad, fit_good), (bad, good) = report.n_train, report.n_test
    blocks = [
        f"# Inspection of {code(report.model)}",
        "Where refusal is represented in this model, and what attacks do to it. Fitted on "
        f"{fit_bad} "
        f"harmful and {fit_good} harmless prompts ({code(report.train)}), looked at on {bad} "
        f"harmful and {good} harmless others ({code(report.behaviors)}), at the last token before "
        f"the answer. Weights in {code(report.dtype)}, revision {code(report.revision or '-')}, "
        f"seed {report.seed}.",
    ]
    if not report.texts:
        blocks.append(
            "For sharing, this page and its data hold no texts: no requests, no system prompt, no "
            "strings that searches found and no answers. What they quote are single tokens of the "
            "vocabulary; behaviours go by the ids of their sets."
        )
    if report.system is not None:
        blocks.append(f"System prompt: {code(report.system)}")
    if report.thinking is not None:
        blocks.append(
            "This model thinks before it answers, so the last token of the prompt is followed by "
            "thinking. What is said below of the first token or the last one before the answer is "
            "about that place, and says little of refusal; see *Refusal while thinking*."
        )
    elif not report.refuses:
        blocks.append(
            "**This model does not seem to refuse**: no first token is much likelier on harmful "
            "prompts than on harmless ones. Its directions are those of harmfulness, and what is "
            "said of refusal below does not apply."
        )
    return blocks


def _cosines(figures: Mapping[str, str]) -> list[str]:
    return [
        "## Is it one direction?",
        "Cosine between the directions of each pair of layers. A red block means that these "
        "layers share one direction; white means that their directions are orthogonal.",
        figures["cosines"],
    ]


def _plane(report: Report, figures: Mapping[str, str]) -> list[str]:
    found = report.plane
    refused = sum(move.refused for move in found.moves)
    rows = [
        [
            code(move.behavior),
            _number(move.harmless_before),
            _number(move.harmless_after),
            *("yes" if flag else "no" for flag in (move.plain, move.random, move.refused)),
        ]
        for move in found.moves
    ]
    before, noise = sum(m.plain for m in found.moves), sum(m.random for m in found.moves)
    return [
        "## Where attacks move prompts",
        f"Test prompts at layer {found.layer}, in the plane of the two directions in which they "
        f"vary most. Arrows lead from {len(found.moves)} harmful prompts to where the suffix of an "
        f"ssr-probe attack of at most {report.steps} steps of {report.width} candidates "
        f"carries each. {_apart(found)}",
        figures["plane"],
        f"Of the {len(found.moves)} answers, {before} open with a refusal without an attack, "
        f"{noise} with a random suffix as long, and {refused} with the attack's. All attacks are "
        "shown, successful or not; the quality of the answers is judged on the leaderboard.",
        _table(
            [
                "Behaviour",
                "P(harmless) before",
                "and after",
                "Refused",
                "With a random suffix",
                "After the attack",
            ],
            rows,
        ),
    ]


def _apart(plane: Plane) -> str:
    """What the place of an attacked prompt says: nothing, where the two kinds overlap."""
    harmful, harmless = np.array(plane.harmful), np.array(plane.harmless)
    both = np.concatenate([harmful, harmless])
    distances = [np.linalg.norm(both - rows.mean(0), axis=1) for rows in (harmful, harmless)]
    own = (distances[0] < distances[1]) == (np.arange(len(both)) < len(harmful))
    if own.mean() >= LEAST_ACCURACY:
        return (
            "An attacked prompt among the harmless ones looks harmless to this layer; one between "
            "or outside the two clouds looks like neither."
        )
    return (
        f"Harmful and harmless prompts overlap in this plane: {_number(float(own.mean()))} of them "
        "are nearer to the mean of their own kind than to that of the other (0.5 is chance). So "
        "what sets them apart lies across the plane, if anywhere, and the place of an arrow tells "
        "little: go by the probe's figures below, as far as the probe carries over to these "
        "prompts."
    )


def _curves(report: Report, figures: Mapping[str, str]) -> list[str]:
    found = report.curves
    means = [
        [_number(fmean(column)) for column in zip(*found.groups[group], strict=True)]
        for group in GROUPS
    ]
    rows = [[str(layer), *row] for layer, row in enumerate(zip(*means, strict=True))]
    count = len(found.prompts)
    return [
        "## Does the change persist?",
        "Cosine of the last token's activation with each layer's own direction, the higher the "
        f"more harmful it looks: the mean over {count} prompts, in a band from the lowest to the "
        "highest of them. Prompts at the harmless level look harmless to that layer; a curve "
        "far from both kinds is out of distribution, and one that climbs back has been "
        "detected by later layers. A random suffix is the control: the effect of any suffix of "
        "that length. Ablation is the intervention at run time: the direction is removed from "
        "the stream at every layer.",
        figures["curves"],
        folded(["Layer", *GROUPS.values()], rows),
    ]


def _angles(report: Report, figures: Mapping[str, str]) -> list[str]:
    found = report.angles
    measured = (found.between, found.between_halves, found.within_halves)
    rows = [
        [str(layer), *(_number(fmean(angles), 1) for angles in row)]
        for layer, row in enumerate(zip(*measured, strict=True))
    ]
    return [
        "## Do harmful prompts occupy a separate subspace?",
        f"Principal angles between the {found.dimension} main directions in which harmful prompts "
        "vary and those in which harmless ones do, means taken out: the mean angle in a band from "
        "the smallest to the largest. 0 is the same subspace, 90 nothing shared; random subspaces "
        f"in {found.width} dimensions lie {_number(fmean(found.chance), 1)} degrees apart on "
        f"average ({found.draws} draws). Fewer prompts alone make angles larger, so two more "
        "curves are from half of the prompts: every other harmful one against the other harmless "
        "ones, and against the other harmful ones. Harm has a separate subspace only as far as "
        "the former lies above the latter.",
        figures["angles"],
        folded(
            ["Layer", "Harmful and harmless", "The same, half of each", "Two halves of harmful"],
            rows,
        ),
    ]


def _reverse(report: Report) -> list[str]:
    found = report.reverse
    title = "## What the direction responds to"
    if not found.found:
        return [title, "Left out: no strings were searched."]
    rows = [
        [
            code(row.text) if report.texts else str(at + 1),
            *(_number(value) for value in (row.start, row.cosine)),
            "yes" if row.refused else "no",
        ]
        for at, row in enumerate(found.found)
    ]
    hint = "Words that recur hint at what the model takes as a sign of harm; such strings need not "
    hint = f"{hint}mean anything." if report.texts else "The strings themselves are left out."
    starts = f"{len(rows)} random starts, all of them shown" if len(rows) > 1 else "a random start"
    return [
        title,
        f"{found.slots} tokens alone in a user's turn, searched to point along the direction of "
        f"layer {found.layer} as far as they can, from {starts}. "
        f"For comparison: the mean cosine is {_number(found.harmful)} for harmful and "
        f"{_number(found.harmless)} for harmless test prompts. {hint}",
        _table(
            ["Found" if report.texts else "String", "Cosine at the start", "Cosine", "Refused"],
            rows,
        ),
    ]
