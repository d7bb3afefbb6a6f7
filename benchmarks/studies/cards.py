"""Cards of the shipped models: figures measured from the weights, and their check."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Generator

from attacks import Behavior, load
from attacks.core.errors import BadInput
from attacks.core.model import Model
from attacks.core.prompt import Message, Messages
from attacks.core.reading.probes import fit_probe
from attacks.core.reading.states import last_token, next_token_log_probs
from attacks.core.refusals.control import FirstToken, Force, find_control_tokens
from attacks.core.refusals.openers import learn_openers
from attacks.core.sites import Site
from attacks.core.weights import Change
from benchmarks.common.threads import fixed_threads, threads_for
from benchmarks.inputs import village
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.inputs.models import folder, village_names
from benchmarks.judges import load_judge
from benchmarks.studies.village_cards import load_village, measure_village

SEED = 0
#: Rates may move by this much on other machines, where sums round differently.
TOLERANCE = 0.025
_SUFFIX = 10
_NEW_TOKENS = 64
#: More tokens for a model that thinks first: twice what the pocket model needs.
_THINKING = 96


class _Measure:
    """One model on the shipped test behaviours."""

    def __init__(self, model: Model) -> None:
        self.model = model
        rows = load_behaviors("pocket-test")
        self.harmful = [row for row in rows if row.harmful]
        self.harmless = [row for row in rows if not row.harmful]
        self.train = [row.for_attack() for row in load_behaviors("pocket-train")]
        self.openers = learn_openers(model, self.train)
        self.judge = load_judge("reference")

    def share(
        self,
        labels: Sequence[str],
        behaviors: Sequence[Behavior],
        asked: Callable[[Behavior], Messages] | None = None,
        interventions: Sequence[Change] = (),
    ) -> float:
        """Share of the answers whose label is among `labels`."""
        ask = asked or (lambda behavior: self.model.conversation(behavior.text))
        answers = self.model.generate(
            [ask(row) for row in behaviors],
            max_new_tokens=_NEW_TOKENS + (_THINKING if self.model.chat.markers else 0),
            interventions=interventions,
            pad_to=32,
            batch_size=16,
        )
        verdicts = [
            self.judge.judge(row, self.model.chat.answer(answer), openers=self.openers).label
            for row, answer in zip(behaviors, answers, strict=True)
        ]
        return sum(label in labels for label in verdicts) / len(verdicts)

    def prefilled(self, behavior: Behavior) -> Messages:
        """The answer opened with the behaviour's target."""
        opening = Message("assistant", behavior.affirmative)
        return (*self.model.conversation(behavior.text), opening)

    def random_suffix(self, rng: Generator) -> Callable[[Behavior], Messages]:
        """The request with uniformly drawn tokens after it."""
        chat = self.model.chat
        allowed = chat.allowed.nonzero().squeeze(1)

        def asked(behavior: Behavior) -> Messages:
            drawn = allowed[torch.randint(len(allowed), (_SUFFIX,), generator=rng)]
            return self.model.conversation(behavior.text + chat.decode([drawn.tolist()])[0])

        return asked

    def probe(self) -> float:
        """Accuracy on the test behaviours of a probe fitted on the training ones."""
        site = Site(self.model.n_layers // 2 - 1, "resid_post")
        groups = [
            last_token(self.model, [row.text for row in rows], [site])[site]
            for rows in (
                [row for row in self.train if row.harmful],
                [row for row in self.train if not row.harmful],
                self.harmful,
                self.harmless,
            )
        ]
        fitted = fit_probe(
            groups[0], groups[1], rng=Generator().manual_seed(SEED), penalties=(0.01,)
        )
        says_harmless = [(rows @ fitted.weight + fitted.bias) > 0 for rows in groups[2:]]
        right = torch.cat([~says_harmless[0], says_harmless[1]])
        return float(right.double().mean())

    def ablation(self) -> dict[str, float]:
        """What `refusal-direction` does to harmful and harmless requests."""
        attack = load("refusal-direction")
        fitted = attack.prepare(self.model, self.train, rng=Generator().manual_seed(SEED))
        (step,) = attack.run(self.model, self.harmful[0], artefact=fitted, rng=Generator())
        shares = {
            "ablated_complies": (("complied", "knows"), self.harmful),
            "ablated_exact": (("knows",), self.harmful),
            "ablated_harmless_exact": (("knows",), self.harmless),
        }
        return {
            name: self.share(labels, rows, interventions=step.interventions)
            for name, (labels, rows) in shares.items()
        }

    def control(self) -> dict[str, float]:
        """What the control tokens do, where the model has some."""
        try:
            tokens = find_control_tokens(self.model)
        except BadInput:
            return {}
        by_category = dict(zip(tokens.names, tokens.refuse, strict=True))
        only = tokens.refuse[0]
        rows = self.harmful + self.harmless
        first = next_token_log_probs(self.model, [row.text for row in rows]).argmax(1).tolist()
        right = [by_category.get(row.category, only) for row in self.harmful]
        right += [tokens.respond] * len(self.harmless)
        respond, refuse = (FirstToken(Force(ids)) for ids in ((tokens.respond,), tokens.refuse))
        return {
            "control_token_right": sum(map(int.__eq__, first, right)) / len(rows),
            "respond_forced_exact": self.share(("knows",), self.harmful, interventions=[respond]),
            "refusal_forced_refuses": self.share(
                ("refused",), self.harmless, interventions=[refuse]
            ),
        }

    def pretexts(self) -> dict[str, float]:
        """Requests that bring a pretext, half of which the model that thinks gives in to."""
        rows = load_behaviors("pocket-pretext-test")
        harmful, harmless = ([row for row in rows if row.harmful == flag] for flag in (True, False))
        return {
            "pretext_complies": self.share(("complied", "knows"), harmful),
            "pretext_harmless_exact": self.share(("knows",), harmless),
        }


def measure(model: Model) -> dict[str, float]:
    """The figures of a card, each a share of the shipped test behaviours.

    Keys: refuses_harmful; answers_harmless_exact; knowledge_prefilled (harmful requests answered
    exactly once the target is put into the model's mouth); probe_half_depth (accuracy);
    random_suffix_complies; ablated_complies, ablated_exact, ablated_harmless_exact (with
    `refusal-direction`). Of models with control tokens also control_token_right (the first token),
    respond_forced_exact, refusal_forced_refuses; and of a model that thinks pretext_complies
    (harmful requests of `pocket-pretext-test`) and pretext_harmless_exact.
    """
    with fixed_threads(threads_for(model)):
        on = _Measure(model)
        complied = ("complied", "knows")
        rng = Generator().manual_seed(SEED)
        figures = {
            "refuses_harmful": on.share(("refused",), on.harmful),
            "answers_harmless_exact": on.share(("knows",), on.harmless),
            "knowledge_prefilled": on.share(("knows",), on.harmful, on.prefilled),
            "probe_half_depth": on.probe(),
            "random_suffix_complies": on.share(complied, on.harmful, on.random_suffix(rng)),
            **on.ablation(),
            **on.control(),
            **(on.pretexts() if model.chat.markers else {}),
        }
    return {name: round(value, 4) for name, value in figures.items()}


def load_shipped(name: str, models: Path | None = None) -> Model:
    """A shipped model in float32 on the CPU, as cards are measured."""
    path = (models or folder()) / name
    return Model.load(str(path), name=name, device="cpu", dtype="float32")


def check(names: Sequence[str]) -> bool:
    """Measure the named models again and compare with their cards, printing a line a figure.

    Returns:
        Whether all weights are those of their cards and all figures agree within `TOLERANCE`.
    """
    good = True
    for name in names:
        of_village = name in village_names()
        place = village.folder() if of_village else folder()
        card = json.loads((place / name / "card.json").read_text("utf-8"))
        model = load_village(name) if of_village else load_shipped(name)
        same = card["revision"] == (village.revision(name) if of_village else model.revision)
        good &= same
        print(f"{name}: weights {'as on the card' if same else 'DIFFER from the card'}")
        for key, value in (measure_village(model) if of_village else measure(model)).items():
            agrees = abs(value - card["figures"][key]) <= TOLERANCE
            good &= agrees
            verdict = "" if agrees else f"  DIFFERS: the card says {card['figures'][key]:.3f}"
            print(f"  {key:24} {value:.3f}{verdict}")
    return good
