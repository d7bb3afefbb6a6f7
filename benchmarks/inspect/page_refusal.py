"""The sections of the page on where refusal is: layers, heads, paths, and what directions say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from attacks.core.analysis.survey import BROKEN, LEAST_ACCURACY
from benchmarks.inspect.markdown import LONG, code, codes, folded, number, table
from benchmarks.inspect.results import Report

#: Layers that stand for all where there are many.
_SHOWN = 9


def layers(report: Report, figures: Mapping[str, str]) -> list[str]:
    """What can be read in each layer, and what the model uses of it."""
    found = report.layers
    columns = (found.accuracy, found.log_loss, found.separation, found.effect, found.kl)
    rows = [[str(layer), *map(number, row)] for layer, row in enumerate(zip(*columns, strict=True))]
    headings = ["Layer", "Probe accuracy", "Log loss", "Separation", "Effect of ablation", "KL"]
    return [
        "## Where harm and refusal are represented",
        "For each layer: how often a linear probe tells harmful from harmless prompts that it was "
        "not fitted on (and its log loss in nats, which still differs where accuracies are equal), "
        "how many standard deviations apart the two classes lie along the "
        "difference of their means (the layer's direction), and how far ablating that "
        "direction everywhere lowers the log odds of opening with a refusal from the level of "
        "harmful to that of harmless prompts (1 is all the way or beyond). An accurate probe shows "
        "that harm can be decoded at a layer; only the effect of ablation shows that the model "
        "uses it. Where ablation changes the first token of answers to harmless prompts by more "
        f"than {BROKEN:.0f} nat (KL), it breaks the model: that is no effect on refusal, and it "
        f"counts as 0. {_choice(report)}",
        *_by_words(report),
        figures["layers"],
        folded(headings, rows),
        "The direction that attacks ablate was read at the input of block "
        f"{found.ablation_layer}; it was chosen on held-out prompts.",
    ]


def _choice(report: Report) -> str:
    """Why the layer that is aimed at is the one."""
    found = report.layers
    marks = f"The dashed line marks layer {found.chosen}, the one that attacks target:"
    if max(found.accuracy) < LEAST_ACCURACY:
        return f"{marks} its probe is the best, though none is right on {LEAST_ACCURACY}."
    if not any(found.effect):
        return f"{marks} the first whose probe is accurate, for no ablation has an effect."
    return f"{marks} the first that is accurate and has nearly the best effect."


def _by_words(report: Report) -> list[str]:
    """A warning where the first block's output already tells the two sets apart."""
    found = report.layers
    if found.accuracy[0] < LEAST_ACCURACY:
        return []
    said = (
        f"The first block's output, which has hardly more than the words, already tells "
        f"{number(found.accuracy[0])} of the prompts right. So the two training sets differ in "
        "their words, and accuracy alone says little about what the model makes of them; "
    )
    if found.by_sets:
        return [f"{said}no later probe is better, so probes may read nothing but the sets."]
    best = min(range(len(found.log_loss)), key=lambda at: found.log_loss[at] or 0.0)
    return [
        f"{said}later probes are better all the same: the log loss falls from "
        f"{number(found.log_loss[0])} to {number(found.log_loss[best])} at layer {best}."
    ]


def attribution(report: Report, figures: Mapping[str, str]) -> list[str]:
    """Heads, and the residual stream by depth."""
    found = report.attribution
    title = "## Which heads refuse"
    if found.note:
        return [title, f"Left out: {code(found.note)}."]
    heads = ", ".join(f"{layer}.{head}" for layer, head in found.heads) or "none"
    return [
        title,
        f"Refusals open with {codes(found.refuse)}, answers with {codes(found.accept)}.",
        "Left: the share of the refusal transferred when one head's output is patched from a "
        "harmful prompt into the run of its harmless twin (or of any harmless one, where the "
        "set names no twins), at the last token (1 is all of it). "
        "Right: each head's direct contribution to refusing minus answering, in logits, on "
        "harmful prompts. A head that is dark on the left and pale on the right works through "
        "later layers. Framed are the heads that an attack on attention targets (layer.head): "
        f"{heads}.",
        figures["heads"],
        "The same for the whole residual stream: how strongly it favours refusing over "
        "answering after each number of blocks. Where the curves diverge, refusal is written.",
        figures["depth"],
        folded(
            ["Blocks that have run", "Harmful", "Harmless"],
            [
                [str(depth), number(bad), number(good)]
                for depth, (bad, good) in enumerate(zip(found.harmful, found.harmless, strict=True))
            ],
        ),
    ]


def paths(report: Report) -> list[str]:
    """Faithful or dormant: the directions inside the MLPs."""
    title, found = "## Does the direction act through the components that read it?", report.paths
    if found.note:
        return [title, f"Left out: {code(found.note)}."]
    kinds = ("direction", "read", "unread", "whole", "random")
    rows = [
        [
            str(row.layer),
            row.verdict,
            *(number(row.share[kind]) for kind in kinds),
            number(row.unread),
            number(row.reach, 1),
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
        *_verdicts(report),
        folded(
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


def _verdicts(report: Report) -> list[str]:
    """How often each verdict was given, where there are too many to count."""
    rows = report.paths.rows
    if len(rows) <= LONG:
        return []
    counts = Counter(row.verdict for row in rows)
    said = "; ".join(f"{verdict}: {count}" for verdict, count in counts.most_common())
    most = max(rows, key=lambda row: row.share["direction"])
    return [
        f"Of {len(rows)} layers, {said}. The direction carries over most at layer {most.layer}: "
        f"{number(most.share['direction'])}."
    ]


def lens(report: Report) -> list[str]:
    """Tokens that the directions raise and lower."""
    title = "## What the directions decode to"
    if not report.lens:
        return [title, "Left out: no final norm is known for this family of models."]
    shown, note = report.lens, ""
    if len(shown) > LONG:
        last = len(shown) - 1
        some = {round(last * at / (_SHOWN - 1)) for at in range(_SHOWN)} | {report.layers.chosen}
        shown = [row for row in shown if row.layer in some]
        note = " Some layers are shown, among them the one aimed at; all are in the data."
    return [
        title,
        "The tokens that each layer's direction raises and lowers most when it is read as an "
        "output, through the final norm's gain and the unembedding. Early directions rarely make "
        "sense here; those of the layers before the answer should name openers of refusals on the "
        f"left and of answers on the right.{note}",
        table(
            ["Layer", "Raised", "Lowered"],
            [[str(row.layer), codes(row.raised), codes(row.lowered)] for row in shown],
            text=3,
        ),
    ]
