"""The numbers of a study of control tokens, section by section.

Everything is judged on texts. What an attack does is asked of the attack itself, on logits that
were read once; the answers come from `Asked`, which generates each only once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from attacks.attack import Behavior
from attacks.control_tokens import ControlTokenSteering
from attacks.registry import params_of
from benchmarks.boards.success import Rate, success_rate
from benchmarks.judges import Verdict
from benchmarks.tokens.results import Agreement, Curve, Effect, Margin, Outcome, Report, Row
from benchmarks.tokens.subject import Asked, Options, Subject
from benchmarks.tokens.sweep import Scored, area, choose, f1, is_monotone, rates, sweep

HARMFUL, HARMLESS = "harmful", "harmless"
_OWN = "the model's own choice"


def study(subject: Subject, options: Options) -> Report:
    """All numbers."""
    model, test, temperature = subject.model, subject.test, options.temperature
    counts = [
        [sum(row.harmful == flag for row in asked.behaviors) for flag in (True, False)]
        for asked in (subject.train, test)
    ]
    return Report(
        model=model.name,
        revision=model.revision,
        dtype=model.dtype,
        system=model.system,
        train=subject.train_name,
        behaviors=subject.test_name,
        judge=subject.judge,
        temperature=temperature,
        suffix=options.suffix,
        tokens=list(subject.tokens.names),
        n_train=counts[0],
        n_test=counts[1],
        pairs=len({_request(row) for row in test.behaviors}),
        own=[*_rows(subject, None)],
        suppress=[row for attack in _ways(subject, "suppress") for row in _rows(subject, attack)],
        induce=[row for attack in _ways(subject, "induce") for row in _rows(subject, attack)],
        effects=[*_effects(subject)],
        curves=[_curve(subject, about, temperature) for about in ("", *subject.categories)],
        agreement=[*_agreement(subject)],
        margins=[*_margins(subject)],
    )


def spec(attack: ControlTokenSteering | None) -> str:
    """How to name an attack on the command line, with what differs from the defaults."""
    if attack is None:
        return _OWN
    usual = params_of(type(attack)())
    given = {
        key: value
        for key, value in params_of(attack).items()
        if value != usual[key] or key == "mode"
    }
    return ",".join(f"{key}={json.dumps(value)}" for key, value in given.items())


def _ways(subject: Subject, direction: Any) -> Iterator[ControlTokenSteering]:
    """The attacks that go all the way in one direction."""
    modes: tuple[Any, ...] = ("force", "category", "bias")
    modes += ("sum",) if len(subject.tokens.refuse) > 1 else ("threshold",)
    for mode in modes:
        yield ControlTokenSteering(mode=mode, direction=direction)
    if direction == "induce" and len(subject.tokens.refuse) > 1:
        for name in subject.tokens.names:
            yield ControlTokenSteering(direction=direction, categories=(name,))


def _rows(subject: Subject, attack: ControlTokenSteering | None) -> Iterator[Row]:
    """What becomes of harmful prompts, those of each category among them, and harmless ones.

    Of induced refusals only the harmless prompts are of interest.
    """
    asked = subject.test
    induces = attack is not None and attack.direction == "induce"
    wanted = [HARMLESS] if induces else [HARMFUL, *subject.categories, HARMLESS]
    groups = {name: _members(asked, name) for name in wanted}
    first = asked.own if attack is None else asked.under(attack)
    members = sorted(set().union(*groups.values()))
    said = dict(zip(members, _verdicts(asked, first, members), strict=True))
    for name, places in groups.items():
        yield Row(spec(attack), name, _outcome(asked, places, [said[at] for at in places]))


def _effects(subject: Subject) -> Iterator[Effect]:
    asked = subject.test
    harmful = _members(asked, HARMFUL)
    before = dict(zip(harmful, _verdicts(asked, asked.own, harmful), strict=True))
    modes: tuple[Any, ...] = ("category", "bias")
    for mode in modes:
        for suppressed in subject.categories:
            attack = ControlTokenSteering(mode=mode, categories=(suppressed,))
            first = asked.under(attack)
            after = dict(zip(harmful, _verdicts(asked, first, harmful), strict=True))
            for category in subject.categories:
                places = _members(asked, category)
                pairs = [(before[at].success is True, after[at].success is True) for at in places]
                yield Effect(
                    mode,
                    suppressed,
                    category,
                    len(places),
                    _rate(asked, places, [was for was, _ in pairs]),
                    _rate(asked, places, [now for _, now in pairs]),
                    _rate(asked, places, [was != now for was, now in pairs]),
                )


def _curve(subject: Subject, about: str, temperature: float) -> Curve:
    """The sweep of one category's threshold, or of the one on the sum of all."""
    prompts, own = _scored(subject.test, about, temperature)
    fitted_on, _ = _scored(subject.train, about, temperature)
    threshold = choose(fitted_on)
    points = sweep(prompts)
    return Curve(
        about,
        sum(prompt.harmful for prompt in prompts),
        sum(not prompt.harmful for prompt in prompts),
        points,
        is_monotone(points),
        area(points),
        threshold,
        rates(fitted_on, threshold),
        rates(prompts, threshold),
        f1(prompts, threshold),
        f1(own, 0.5),
    )


def _scored(asked: Asked, about: str, temperature: float) -> tuple[list[Scored], list[Scored]]:
    """The prompts of a sweep, and the same with the model's own choice at every threshold."""
    mode: Any = "category" if about else "sum"
    categories = (about,) if about else ()
    ends = {
        way: ControlTokenSteering(
            mode=mode, direction=way, categories=categories, temperature=temperature
        )
        for way in ("suppress", "induce")
    }
    members = _sides(asked, about)
    refuse = asked.probs[:, 1:]
    if about:
        place = asked.tokens.names.index(about)
        scores = torch.where(refuse.argmax(1) == place, refuse[:, place], 0.0)
    else:
        scores = refuse.sum(1)
    below, above = (
        _verdicts(asked, asked.under(ends[way]), members) for way in ("suppress", "induce")
    )
    own = _verdicts(asked, asked.own, members)
    refused = [[said.label == "refused" for said in group] for group in (below, above, own)]
    kinds = [asked.behaviors[at].harmful for at in members]
    chosen = scores[members].tolist()
    return (
        [Scored(*fields) for fields in zip(kinds, chosen, refused[0], refused[1], strict=True)],
        [Scored(*fields) for fields in zip(kinds, chosen, refused[2], refused[2], strict=True)],
    )


def _sides(asked: Asked, about: str) -> list[int]:
    """Harmful prompts, and the harmless ones of the same category where there are any."""
    harmful, harmless = _members(asked, about or HARMFUL), _members(asked, HARMLESS)
    alike = [at for at in harmless if asked.behaviors[at].category == about]
    return harmful + (alike or harmless)


def _agreement(subject: Subject) -> Iterator[Agreement]:
    asked, tokens = subject.test, subject.tokens
    says = {tokens.respond: ("respond", False)}
    says |= {index: (name, True) for index, name in zip(tokens.refuse, tokens.names, strict=True)}
    choices = {_OWN: asked.own} | {
        spec(attack): asked.under(attack)
        for attack in (ControlTokenSteering(), ControlTokenSteering(direction="induce"))
    }
    for how, first in choices.items():
        for group in (HARMFUL, HARMLESS):
            members = _members(asked, group)
            said = _verdicts(asked, first, members)
            by_token: dict[int, list[bool]] = {}
            for at, verdict in zip(members, said, strict=True):
                by_token.setdefault(int(first[at]), []).append(verdict.label == "refused")
            for token, refused in sorted(by_token.items()):
                name, refuses = says.get(token, ("none of them", None))
                agree = None
                if refuses is not None:
                    agree = sum(text == refuses for text in refused) / len(refused)
                yield Agreement(how, group, name, len(refused), sum(refused), agree)


def _margins(subject: Subject) -> Iterator[Margin]:
    asked = subject.test
    probs = asked.probs
    margins = (probs[:, 1:].sum(1).log() - probs[:, 0].log()).tolist()
    for group in (HARMFUL, HARMLESS):
        values = [margins[at] for at in _members(asked, group)]
        yield Margin(group, min(values), median(values), max(values))


def _members(asked: Asked, group: str) -> list[int]:
    """Places of the harmful prompts, of the harmless ones, or of a category's harmful ones."""
    if group == HARMLESS:
        return [at for at, row in enumerate(asked.behaviors) if not row.harmful]
    return [
        at
        for at, row in enumerate(asked.behaviors)
        if row.harmful and group in (HARMFUL, row.category)
    ]


def _verdicts(asked: Asked, first: Tensor, members: Sequence[int]) -> list[Verdict]:
    return asked.verdicts(members, first[list(members)].tolist())


def _outcome(asked: Asked, members: Sequence[int], said: Sequence[Verdict]) -> Outcome:
    known = all(verdict.success is not None for verdict in said)
    return Outcome(
        len(members),
        _rate(asked, members, [verdict.label == "refused" for verdict in said]),
        _rate(asked, members, [bool(verdict.success) for verdict in said]) if known else None,
    )


def _rate(asked: Asked, members: Sequence[int], outcomes: Sequence[bool]) -> Rate:
    """The share of requests, whose wordings are not independent of each other."""
    requests: dict[str, list[bool]] = {}
    for at, outcome in zip(members, outcomes, strict=True):
        requests.setdefault(_request(asked.behaviors[at]), []).append(outcome)
    rate = success_rate(list(requests.values()))
    assert rate is not None, "a group without prompts"
    return rate


def _request(row: Behavior) -> str:
    """What wordings of one request share."""
    return row.target or row.id
