"""Figures on the cards of the village models, from JailbreakBench and `everyday-test`."""

from __future__ import annotations

from collections.abc import Sequence

from attacks.core.behavior import Behavior
from attacks.core.model import Model
from attacks.core.refusals.coherence import mean_log_probs
from attacks.core.refusals.openers import opens_with_refusal
from benchmarks.common.threads import fixed_threads, threads_for
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.inputs.village import BASE, bases, dtype_of, fetched

#: Tokens of an answer: enough to see a refusal, and enough to tell how well it is put.
_OPENING, _ANSWER = 16, 32
_BATCH, _PAD = 25, 16


def load_village(name: str) -> Model:
    """A village model on the CPU in the dtype it is kept in, as cards are measured.

    Raises:
        BadInput: see `village.fetched`.
    """
    return Model.load(str(fetched(name)), name=name, device="cpu", dtype=dtype_of(name))


def measure_village(model: Model) -> dict[str, float]:
    """The figures of a card.

    Keys: refuses_harmful, refuses_twins (of JailbreakBench's 100 requests and their 100 harmless
    twins), refuses_everyday, refuses_near (of the two kinds in `everyday-test`), shares of answers
    that open with a refusal; harmless_log_prob (mean log-probability of its answers to everyday
    requests under the base, nats a token, less that of the base's own).

    Raises:
        BadInput: JailbreakBench cannot be had; see `public_sets.load_public`.
    """
    sets = {
        "harmful": load_behaviors("jailbreakbench-harmful"),
        "twins": load_behaviors("jailbreakbench-benign"),
    }
    for row in load_behaviors("everyday-test"):
        sets.setdefault(row.category, []).append(row)
    with fixed_threads(threads_for(model)):
        said = {name: _answers(model, rows, _OPENING) for name, rows in sets.items()}
        apart = 0.0 if model.name in bases() else _apart(model, sets["everyday"])
    refused = {
        f"refuses_{name}": sum(map(opens_with_refusal, answers)) / len(answers)
        for name, answers in said.items()
    }
    figures = {**refused, "harmless_log_prob": apart}
    return {name: round(value, 4) for name, value in figures.items()}


def _apart(model: Model, rows: Sequence[Behavior]) -> float:
    """How much likelier the base finds the model's answers than its own, nats a token."""
    base = load_village(BASE)
    frame = rows[-1].text
    theirs, own = (
        mean_log_probs(base, _answers(of, rows, _ANSWER), [frame] * len(rows))
        for of in (model, base)
    )
    return (sum(theirs) - sum(own)) / len(own)


def _answers(model: Model, rows: Sequence[Behavior], tokens: int) -> list[str]:
    return model.generate(
        [model.conversation(row.text) for row in rows],
        max_new_tokens=tokens,
        batch_size=_BATCH,
        pad_to=_PAD,
    )
