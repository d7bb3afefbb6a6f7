"""Judging answers that another process than the run's has made to what the run has sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attacks.core.answer import cut
from attacks.core.errors import BadInput
from attacks.core.refusals.coherence import echoes, loops
from benchmarks.judges import load_judge
from benchmarks.judges.context import Context
from benchmarks.storage.records import Judgement, Record


def with_answers(record: Record, prompts: Sequence[int], answers: Sequence[str]) -> Record:
    """The record with new answers to some of its prompts, and whether they are loops or echoes."""
    openings = tuple(record.openings[at] for at in prompts) if record.openings else ()
    asked = tuple(record.prompts[at] for at in prompts)
    heads = openings or ("",) * len(asked)
    garbled = tuple(
        loops(head + answer) or echoes(head + answer, prompt)
        for head, answer, prompt in zip(heads, answers, asked, strict=True)
    )
    return replace(
        record,
        prompts=asked,
        completions=tuple(answers),
        openings=openings,
        garbled=garbled,
        cut=cut(answers),
        samples=0,
    )


def rejudge(context: Context, record: Record, judges: Sequence[str]) -> list[Judgement]:
    """What judges say of all answers of a record; what is garbled is no success.

    Raises:
        BadInput: an unknown judge, or one that judges in a separate pass; a behaviour that is
            not to be found.
    """
    found = []
    for name in judges:
        if not judges_at_once(name):
            raise BadInput(f"judge '{name}' runs in a separate pass (reroute judge)")
        judge = load_judge(name)
        for index, garbled in enumerate(record.garbled):
            case = context.case(record, index)
            said = judge.judge(case.behavior, case.answer, openers=case.openers)
            said = judge.settled(said, garbled=garbled, answer=case.answer)
            found.append(Judgement(record.key, name, index, said.success, said.label, said.score))
    return found


def judges_at_once(name: str) -> bool:
    """Whether that is the name of a judge which judges within a run, and not an identity."""
    try:
        judge = load_judge(name)
    except BadInput:
        return False
    return judge.at_once and judge.identity == name
