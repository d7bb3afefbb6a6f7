"""The searches of an inspection: attacks on some test behaviours, and the reverse lens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from attacks.attack import Artefact, Behavior
from attacks.core.objectives import SteeringLoss
from attacks.core.prompt import SLOT, last_user_message, suffixed
from attacks.core.search import CoordinateSearch, Evaluator
from attacks.ssr import ProbeSSR
from benchmarks.harness.cells import cell_generator
from benchmarks.inspect.parts import Parts
from benchmarks.inspect.results import Inverted, Reverse
from benchmarks.inspect.subject import Subject

#: Slots of the reverse lens: a few words, so that they may be read.
_SLOTS = 5
#: Candidates of each of its steps.
WIDTH = 64


@dataclass(frozen=True)
class Attacked:
    """Some harmful test behaviours, and the prompts made of them, in the same order."""

    behaviors: list[Behavior]
    random: list[str]
    """With a random suffix of as many slots."""
    found: list[str]
    """With the suffix that the attack puts first."""
    refused: dict[str, list[bool]]
    """Whether the answers open with a refusal: to the `plain` requests, with the `random` suffixes,
    and with those that were `found`."""


@dataclass(frozen=True)
class _Pair:
    """One behaviour with a random suffix, and with the one that was found."""

    random: str
    found: str


def attack(subject: Subject, method: ProbeSSR, count: int, parts: Parts) -> Attacked:
    """Attack the first `count` behaviours; the outcome of every one of them is kept."""
    artefact = subject.attack_artefact(method)
    behaviors = subject.prompts.harmful[:count]

    def search(behavior: Behavior) -> _Pair:
        model = subject.model
        # A stream of its own: the attack's first filling must not be the random suffix as well.
        rng = cell_generator(method, f"random {behavior.id}", subject.seed)
        asked = suffixed(behavior, method.slots, system=model.system)
        prompt = model.prompt(asked, rng=rng)
        (messages,) = model.chat.messages(prompt, prompt.slot_ids.unsqueeze(0))
        rng = cell_generator(method, behavior.id, subject.seed)
        *_, last = method.run(model, behavior, artefact=artefact, rng=rng)
        return _Pair(last_user_message(messages), last_user_message(last.prompts[0]))

    pairs = [
        parts.get(name, _Pair, partial(search, behavior))
        for name, behavior in zip(attacks(count), behaviors, strict=False)
    ]
    asked = {
        "plain": [behavior.text for behavior in behaviors],
        "random": [pair.random for pair in pairs],
        "found": [pair.found for pair in pairs],
    }

    def refused() -> dict[str, list[bool]]:
        # Together, since answers come in batches of a fixed size.
        flags = iter(subject.refused([text for texts in asked.values() for text in texts]))
        return {kind: [next(flags) for _ in texts] for kind, texts in asked.items()}

    flags = parts.get(f"answers {len(behaviors)}", dict[str, list[bool]], refused)
    return Attacked(behaviors, asked["random"], asked["found"], flags)


def attacks(count: int) -> list[str]:
    """Names of the parts of an inspection that attack one behaviour each."""
    return [f"attack {at + 1}" for at in range(count)]


def inversions(restarts: int) -> list[str]:
    """Names of the parts that search for one string each."""
    return [f"string {at + 1}" for at in range(restarts)]


@dataclass(frozen=True)
class _Turned:
    """A string, and the cosines at the start and at the end of its search."""

    text: str
    start: float
    end: float


def invert(subject: Subject, steps: int, restarts: int, parts: Parts) -> Reverse:
    """Strings that, alone in a user turn, point along the direction of the layer aimed at.

    The reverse lens of arXiv 2503.06269: steering with the direction turned round. Its loss is
    (1 - cos)^2, so the cosine is that of the lowest loss. Every restart is kept.
    """
    layer = subject.layer
    direction = subject.survey.tensors[f"direction.{layer}"]
    flipped = Artefact({f"direction.{layer}": -direction})
    search = CoordinateSearch(steps, width=WIDTH, topk=64, buffer=8, keep=1)

    def turn(restart: int) -> _Turned:
        model = subject.model
        rng = cell_generator(ProbeSSR(), f"reverse lens {restart}", subject.seed)
        prompt = model.prompt(model.conversation(SLOT * _SLOTS), rng=rng)
        evaluator = Evaluator(model, prompt, SteeringLoss((layer,)).bind(model, prompt, flipped))
        start = _cosine(float(evaluator.losses(prompt.slot_ids.unsqueeze(0))[0]))
        *_, last = search.run(model, prompt, evaluator, rng=rng)
        text = last_user_message(model.chat.messages(prompt, last.ids[:1])[0])
        return _Turned(text, start, _cosine(float(last.losses[0])))

    turned = [
        parts.get(name, _Turned, partial(turn, restart))
        for restart, name in enumerate(inversions(restarts))
    ]

    def compared() -> Reverse:
        refused = subject.refused([each.text for each in turned]) if turned else []
        rows = [
            Inverted(each.text, each.start, each.end, flag)
            for each, flag in zip(turned, refused, strict=True)
        ]
        harmful, harmless = (
            float((states[layer] @ direction / states[layer].norm(dim=1)).mean())
            for states in (subject.harmful, subject.harmless)
        )
        ranked = sorted(rows, key=lambda row: -row.cosine)
        return Reverse(layer, _SLOTS, harmful, harmless, ranked)

    return parts.get(f"strings {restarts}", Reverse, compared)


def _cosine(loss: float) -> float:
    return 1.0 - math.sqrt(loss)
