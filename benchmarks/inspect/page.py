"""The page of an inspection, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean

from benchmarks.inspect import page_thinking
from benchmarks.inspect.markdown import code
from benchmarks.inspect.markdown import number as _number
from benchmarks.inspect.markdown import table as _table
from benchmarks.inspect.results import GROUPS, Report

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
        _layers(report, figures),
        _cosines(figures),
        _plane(report, figures),
        _attribution(report, figures),
        _curves(report, figures),
        _angles(report, figures),
        _paths(report),
        page_thinking.section(report.thinking, figures),
        _lens(report),
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


def _layers(report: Report, figures: Mapping[str, str]) -> list[str]:
    found = report.layers
    rows = [
        [str(layer), _number(accuracy), _number(separation), _number(effect)]
        for layer, (accuracy, separation, effect) in enumerate(
            zip(found.accuracy, found.separation, found.effect, strict=True)
        )
    ]
    return [
        "## Where harm and refusal are represented",
        "For each layer: how often a linear probe tells harmful from harmless prompts that it was "
        "not fitted on, how many standard deviations apart the two classes lie along the "
        "difference of their means (the layer's direction), and how far ablating that "
        "direction everywhere lowers the log odds of opening with a refusal from the level of "
        "harmful to that of harmless prompts (1 is all the way). An accurate probe shows that "
        "harm can be decoded at a layer; only the effect of ablation shows that the model uses "
        "it. The dashed "
        f"line marks layer {found.chosen}, the first that is accurate and has nearly the best "
        "effect: the one that attacks target.",
        figures["layers"],
        _table(["Layer", "Probe accuracy", "Separation", "Effect of ablation"], rows),
        "The direction that attacks ablate was read at the input of block "
        f"{found.ablation_layer}; it was chosen on held-out prompts.",
    ]


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
            "yes" if move.refused else "no",
        ]
        for move in found.moves
    ]
    return [
        "## Where attacks move prompts",
        f"Test prompts at layer {found.layer}, in the plane of the two directions in which they "
        f"vary most. Arrows lead from {len(found.moves)} harmful prompts to where the suffix of an "
        f"ssr-probe attack of at most {report.steps} steps carries each. An attacked prompt among "
        "the harmless ones looks harmless to this layer; one between or outside the two clouds "
        "looks like neither.",
        figures["plane"],
        f"After the attack {refused} of {len(found.moves)} answers still open with a refusal. "
        "All attacks are shown, successful or not; the quality of the answers is judged on the "
        "leaderboard.",
        _table(["Behaviour", "P(harmless) before", "and after", "Refused after"], rows),
    ]


def _attribution(report: Report, figures: Mapping[str, str]) -> list[str]:
    found = report.attribution
    title = "## Which heads refuse"
    if found.note:
        return [title, f"Left out: {code(found.note)}."]
    heads = ", ".join(f"{layer}.{head}" for layer, head in found.heads) or "none"
    return [
        title,
        f"Refusals open with {_codes(found.refuse)}, answers with {_codes(found.accept)}.",
        "Left: the share of the refusal transferred when one head's output is patched from a "
        "harmful prompt into the run of its harmless twin, at the last token (1 is all of it). "
        "Right: each head's direct contribution to refusing minus answering, in logits, on "
        "harmful prompts. A head that is dark on the left and pale on the right works through "
        "later layers. Framed are the heads that an attack on attention targets (layer.head): "
        f"{heads}.",
        figures["heads"],
        "The same for the whole residual stream: how strongly it favours refusing over "
        "answering after each number of blocks. Where the curves diverge, refusal is written.",
        figures["depth"],
        _table(
            ["Blocks that have run", "Harmful", "Harmless"],
            [
                [str(depth), _number(bad), _number(good)]
                for depth, (bad, good) in enumerate(zip(found.harmful, found.harmless, strict=True))
            ],
        ),
    ]


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
        _table(["Layer", *GROUPS.values()], rows),
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
        _table(
            ["Layer", "Harmful and harmless", "The same, half of each", "Two halves of harmful"],
            rows,
        ),
    ]


def _paths(report: Report) -> list[str]:
    title, found = "## Does the direction act through the components that read it?", report.paths
    if found.note:
        return [title, f"Left out: {code(found.note)}."]
    kinds = ("direction", "read", "unread", "whole", "random")
    rows = [
        [
            str(row.layer),
            row.verdict,
            *(_number(row.share[kind]) for kind in kinds),
            _number(row.unread),
            _number(row.reach, 1),
        ]
        for row in found.rows
    ]
    ranks = ", ".join(sorted({f"{row.rank} of {row.dimension}" for row in found.rows}))
    return [
        title,
        "A patch along a direction can change answers through a path that the model itself never "
        "uses. Inside an MLP this can be tested, since only its output projection reads the "
        f"hidden activations, and it sees only some of their dimensions (here {ranks}). So the "
        "difference in means there, harmful minus harmless, is split into the part that is read "
        "and the part that is not, and each is patched from harmful prompts into harmless ones at "
        "the last token. The figures are shares of the refusal that is transferred; the whole "
        "activation and the strongest of eight random moves of the same length are for "
        "comparison. "
        "*faithful*: the part that is read has the effect by itself. *dormant path*: it does "
        "not, and the effect is an artefact of the patch. *no effect*: hardly any, or no more "
        "than a "
        "random move has. In the residual stream itself every direction is read, so there this "
        "test could not fail.",
        _table(
            [
                "Layer",
                "Verdict",
                "Direction",
                "Read part",
                "Unread part",
                "Whole",
                "Random",
                "Length unread",
                "Reach, std",
            ],
            rows,
            text=2,
        ),
        "*Length unread* is that of the part of the unit direction that nothing reads, and *reach* "
        "how far the patch carries activations from their mean along the part that is read: "
        "above about 4 it leaves the range that the model ever sees.",
    ]


def _lens(report: Report) -> list[str]:
    title = "## What the directions decode to"
    if not report.lens:
        return [title, "Left out: no final norm is known for this family of models."]
    return [
        title,
        "The tokens that each layer's direction raises and lowers most when it is read as an "
        "output, through the final norm's gain and the unembedding. Early directions rarely make "
        "sense here; those of the layers before the answer should name openers of refusals on the "
        "left and of answers on the right.",
        _table(
            ["Layer", "Raised", "Lowered"],
            [[str(row.layer), _codes(row.raised), _codes(row.lowered)] for row in report.lens],
            text=3,
        ),
    ]


def _reverse(report: Report) -> list[str]:
    found = report.reverse
    rows = [
        [code(row.text), _number(row.start), _number(row.cosine), "yes" if row.refused else "no"]
        for row in found.found
    ]
    return [
        "## What the direction responds to",
        f"{found.slots} tokens alone in a user's turn, searched to point along the direction of "
        f"layer {found.layer} as far as they can, from {len(rows)} random starts, all of them "
        f"shown. For comparison: the mean cosine is {_number(found.harmful)} for harmful and "
        f"{_number(found.harmless)} for harmless test prompts. Words that recur hint at what "
        "the model takes as a sign of harm; such strings need not mean anything.",
        _table(["Found", "Cosine at the start", "Cosine", "Refused"], rows),
    ]


def _codes(texts: Iterable[str]) -> str:
    return " ".join(map(code, texts))
