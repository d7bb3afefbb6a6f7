"""The searches of an inspection: attacks on some test behaviours, and the reverse lens."""

from __future__ import annotations

import math
from dataclasses import dataclass

from attacks.attack import Artefact, Behavior
from attacks.core.objectives import SteeringLoss
from attacks.core.prompt import SLOT, last_user_message, suffixed
from attacks.core.search import CoordinateSearch, Evaluator
from attacks.ssr import ProbeSSR
from benchmarks.harness.cells import cell_generator
from benchmarks.inspect.results import Inverted, Reverse
from benchmarks.inspect.subject import Subject

#: Slots of the reverse lens: a few words, so that they may be read.
_SLOTS = 5


@dataclass(frozen=True)
class Attacked:
    """Some harmful test behaviours, and the prompts made of them, in the same order."""

    behaviors: list[Behavior]
    random: list[str]
    """With a random suffix of as many slots."""
    found: list[str]
    """With the suffix that the attack puts first."""
    refused: list[bool]
    """Whether the answers to `found` open with a refusal."""


def attack(subject: Subject, steps: int, count: int) -> Attacked:
    """Attack the first `count` behaviours; the outcome of every one of them is kept."""
    method = ProbeSSR(steps=steps)
    artefact = subject.attack_artefact(method)
    model, behaviors = subject.model, subject.prompts.harmful[:count]
    random, found = [], []
    for behavior in behaviors:
        # A stream of its own: the attack's first filling must not be the random suffix as well.
        rng = cell_generator(method, f"random {behavior.id}", subject.seed)
        asked = suffixed(behavior, method.slots, system=model.system)
        prompt = model.prompt(asked, rng=rng)
        (messages,) = model.chat.messages(prompt, prompt.slot_ids.unsqueeze(0))
        random.append(last_user_message(messages))
        rng = cell_generator(method, behavior.id, subject.seed)
        *_, last = method.run(model, behavior, artefact=artefact, rng=rng)
        found.append(last_user_message(last.prompts[0]))
    return Attacked(behaviors, random, found, subject.refused(found))


def invert(subject: Subject, steps: int, restarts: int) -> Reverse:
    """Strings that, alone in a user turn, point along the direction of the layer aimed at.

    The reverse lens of arXiv 2503.06269: steering with the direction turned round. Its loss is
    (1 - cos)^2, so the cosine is that of the lowest loss. Every restart is kept.
    """
    model, layer = subject.model, subject.layer
    direction = subject.survey.tensors[f"direction.{layer}"]
    flipped = Artefact({f"direction.{layer}": -direction})
    search = CoordinateSearch(steps, width=64, topk=64, buffer=8, keep=1)
    texts, starts, ends = [], [], []
    for restart in range(restarts):
        rng = cell_generator(ProbeSSR(), f"reverse lens {restart}", subject.seed)
        prompt = model.prompt(model.conversation(SLOT * _SLOTS), rng=rng)
        evaluator = Evaluator(model, prompt, SteeringLoss((layer,)).bind(model, prompt, flipped))
        starts.append(_cosine(float(evaluator.losses(prompt.slot_ids.unsqueeze(0))[0])))
        *_, last = search.run(model, prompt, evaluator, rng=rng)
        ends.append(_cosine(float(last.losses[0])))
        texts.append(last_user_message(model.chat.messages(prompt, last.ids[:1])[0]))
    rows = zip(texts, starts, ends, subject.refused(texts), strict=True)
    found = sorted((Inverted(*row) for row in rows), key=lambda row: -row.cosine)
    harmful, harmless = (
        float((states[layer] @ direction / states[layer].norm(dim=1)).mean())
        for states in (subject.harmful, subject.harmless)
    )
    return Reverse(layer, _SLOTS, harmful, harmless, found)


def _cosine(loss: float) -> float:
    return 1.0 - math.sqrt(loss)
