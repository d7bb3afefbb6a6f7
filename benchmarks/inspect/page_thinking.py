"""The section of the page on refusal while a model thinks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from benchmarks.inspect.markdown import code, number, table
from benchmarks.inspect.results import THOUGHT, Thinking


def section(found: Thinking | None, figures: Mapping[str, str]) -> list[str]:
    """Nothing for a model that does not think before it answers."""
    if found is None:
        return []
    title = "## Refusal while thinking"
    if found.note:
        return [title, f"Left out: {code(found.note)}."]
    counts = ", ".join(f"{found.counts[name]} {THOUGHT[name]}" for name in found.counts)
    missing = " All harmful ones were refused: a cliff can only show on pretexts that work."
    if "answered" in found.counts:
        missing = ""
    return [
        title,
        f"This model thinks before it answers (test prompts: {counts}).{missing} For each of some "
        "layers a probe was fitted at the last token before the answer, on training prompts that "
        "were refused and on those that were answered, and then applied at every token of what "
        "the model thought. A plateau that is high while it thinks about a harmful request and "
        "falls "
        f"on the {found.closing} tokens that close the thinking is a cliff: the refusal is lost at "
        "the last moment. During thinking the probe is out of its domain, so compare with "
        "benign thinking (squares) and with the logit lens (dotted), which needs no probe: "
        "where both fall alike, the cliff may only reflect that the model begins to predict "
        "its answer.",
        figures["cliff"],
        "Means over prompts. Plateau: mean over thinking; robust: median of its last quarter; "
        "final: at the last token; the cliff is plateau minus final; place: token of the steepest "
        "fall, counted from the end. Held out: accuracy of the probe on training prompts that it "
        "was not fitted on, and on harmful test prompts alone, refused against answered, where "
        "harm itself does not help.",
        table(
            [
                "Prompts",
                "Layer",
                "Plateau",
                "Robust",
                "Final",
                "Cliff",
                "Place",
                "Held out",
                "Harmful alone",
            ],
            _cliffs(found),
        ),
        *_excess(found),
        "Ranked by cliff and ranked by final score alone, harmful prompts agree to "
        f"{' / '.join(map(number, found.agreement))} (Spearman, by layer).",
        "Refusals when single heads are ablated, chosen by what they write before the answer "
        "along the refusal direction, compared with as many random heads:",
        table(
            ["Heads ablated", "Which (layer.head)", "Harmful refused", "Harmless refused"],
            [
                [
                    row.what,
                    ", ".join(f"{layer}.{head}" for layer, head in row.heads) or "-",
                    number(row.harmful),
                    number(row.harmless),
                ]
                for row in found.ablated
            ],
            text=2,
        ),
    ]


def _excess(found: Thinking) -> list[str]:
    """How much of the cliff benign thinking does not have."""
    if "answered" not in found.cliffs or "harmless" not in found.cliffs:
        return []
    rows = zip(found.cliffs["answered"], found.cliffs["harmless"], strict=True)
    excess = [harmful["drop"] - harmless["drop"] for harmful, harmless in rows]
    return [
        "The control decides what such a cliff means: harmless requests that are thought about and "
        "answered have no refusal to lose, so only the excess of harmful, answered requests "
        f"over these is a cliff. That is {' / '.join(map(number, excess))} (cliff minus cliff "
        "of harmless requests, "
        "by layer). Where it is near 0, the probe takes all thinking as refusal, and its "
        "plateau says nothing."
    ]


def _cliffs(found: Thinking) -> Iterable[list[str]]:
    names = ("plateau", "robust", "final", "drop")
    for group, rows in found.cliffs.items():
        for at, layer in enumerate(found.layers):
            row = rows[at]
            yield [
                THOUGHT[group],
                str(layer),
                *(number(row[name]) for name in names),
                number(row["position"], 1),
                number(found.accuracy[at]),
                number(found.matched[at]) if group != "harmless" else "-",
            ]
