"""What is inspected: a loaded model, prompts, and what was fitted, now or by an earlier run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attacks.attack import Artefact, Behavior
from attacks.core.analysis.survey import Survey, choose_layers
from attacks.core.answer import silent
from attacks.core.errors import BadInput
from attacks.core.interventions import AblateDirection, Intervention
from attacks.core.model import Model
from attacks.core.reading.answers import answers
from attacks.core.reading.states import last_token, next_token_log_probs
from attacks.core.refusals.openers import opener_tokens, opens_with_refusal, refusal_tokens
from attacks.core.sites import Site
from attacks.core.template import DATE
from attacks.ssr import ProbeSSR
from benchmarks.harness.fitting import fit_openers, fit_survey
from benchmarks.harness.plan import refuse_overlap
from benchmarks.inputs.behaviors import chosen_sets, load_behaviors
from benchmarks.inspect.course import Course
from benchmarks.inspect.linear import Array
from benchmarks.paths import folder_name

#: Prompts of a kind that are read where no limit is given.
LIMIT = 128
#: Prompts of a kind without which there is nothing to see; as many as a survey needs.
LEAST = 4
_TRAIN, _TEST = "pocket-train", "pocket-test"
_ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Options:
    """What to inspect, and how."""

    model: str
    train: str | None = None
    behaviors: str | None = None
    out: Path | None = None
    limit: int = LIMIT
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    system: str | None = None
    date: str = DATE
    artefacts: Path | None = None
    steps: int = 12
    """Of each attack's search."""
    width: int = ProbeSSR.width
    """Candidates of each step."""
    attacked: int = 8
    """Behaviours that are attacked."""
    restarts: int = 8
    """Searches of the reverse lens; 0 leaves it out."""
    reverse_steps: int = 24
    """Of each of these."""
    device_map: str | None = None
    texts: bool = True
    """Whether prompts, strings that were found and the like may be on the page; see `shareable`."""

    @property
    def working(self) -> Path:
        """Where an inspection that may hold texts is by default."""
        return Path("runs") / f"inspect-{folder_name(self.model)}"

    @property
    def folder(self) -> Path:
        """Where the page goes."""
        default = (
            self.working if self.texts else self.working.with_name(f"{self.working.name}-shared")
        )
        return self.out or default


@dataclass(frozen=True)
class Prompts:
    """Behaviours with the names of their sets."""

    train_name: str
    test_name: str
    train: list[Behavior]
    """As attacks see them."""
    harmful: list[Behavior]
    """To test on."""
    harmless: list[Behavior]

    @property
    def train_texts(self) -> tuple[list[str], list[str]]:
        """Harmful and harmless ones."""
        harmful, harmless = (
            [row.text for row in self.train if row.harmful == flag] for flag in (True, False)
        )
        return harmful, harmless


def load_prompts(options: Options) -> Prompts:
    """The behaviours to fit on and those to look at.

    Raises:
        BadInput: a set that is missing, unknown, too small or overlaps the other.
    """
    train_name, test_name = chosen_sets(
        "inspect", options.model, (options.train, options.behaviors), (_TRAIN, _TEST)
    )
    for name, least in (
        ("limit", LEAST),
        ("attacked", 1),
        ("steps", 1),
        ("width", 1),
        ("restarts", 0),
    ):
        if (value := getattr(options, name)) < least:
            raise BadInput(f"inspect: {name} {value} is too small; at least {least}")
    train, test = load_behaviors(train_name), load_behaviors(test_name)
    for name, rows in ((train_name, train), (test_name, test)):
        counts = [sum(row.harmful == flag for row in rows) for flag in (True, False)]
        if min(counts) < LEAST:
            raise BadInput(
                f"inspect: '{name}' holds {counts[0]} harmful and {counts[1]} harmless behaviours; "
                f"at least {LEAST} of each are needed"
            )
    refuse_overlap(train, test, train_name, test_name)
    harmful, harmless = (
        [row.for_attack() for row in test if row.harmful == flag][: options.limit]
        for flag in (True, False)
    )
    return Prompts(train_name, test_name, [row.for_attack() for row in train], harmful, harmless)


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with what the suite knows about it. Activations are read once and kept."""

    model: Model
    prompts: Prompts
    seed: int
    survey: Survey
    openers: tuple[str, ...]
    """Normalised openings of its refusals."""

    @property
    def layer(self) -> int:
        """The layer that an attack aims at."""
        return choose_layers(self.survey, (), who="inspect")[0]

    @property
    def sites(self) -> list[Site]:
        """Every block's output at the last token."""
        return [Site(layer, "resid_post") for layer in range(self.model.n_layers)]

    @property
    def directions(self) -> Tensor:
        """(L, D) the unit directions of all layers, harmful minus harmless."""
        tensors = self.survey.tensors
        return torch.stack([tensors[f"direction.{site.layer}"] for site in self.sites])

    @property
    def ablation(self) -> AblateDirection:
        """The intervention that takes the refusal direction out everywhere."""
        return AblateDirection(self.survey.tensors["ablation"], self.model.n_layers)

    def states(self, texts: Sequence[str], *, interventions: Sequence[Intervention] = ()) -> Tensor:
        """(L, N, D) activations at the last token of each text."""
        found = last_token(self.model, texts, self.sites, interventions=interventions, share=True)
        return torch.stack([found[site] for site in self.sites])

    @cached_property
    def harmful(self) -> Tensor:
        """(L, N, D) of the harmful test prompts."""
        return self.states([row.text for row in self.prompts.harmful])

    @cached_property
    def harmless(self) -> Tensor:
        """(L, M, D) of the harmless ones."""
        return self.states([row.text for row in self.prompts.harmless])

    @cached_property
    def tokens(self) -> tuple[Tensor, Tensor]:
        """Ids (K,) that open refusals and ids that open answers, from the training prompts."""
        harmful, harmless = (
            next_token_log_probs(self.model, texts, share=True)
            for texts in self.prompts.train_texts
        )
        return refusal_tokens(harmful, harmless, most=8), refusal_tokens(harmless, harmful, most=8)

    @property
    def refuses(self) -> bool:
        """Whether some tokens open refusals of the training prompts."""
        return len(self.tokens[0]) > 0

    def probe(self, rows: Tensor) -> Tensor:
        """(N,) P(harmless) of activations (N, D) at the layer aimed at."""
        weight, bias = (self.survey.tensors[f"{kind}.{self.layer}"] for kind in ("weight", "bias"))
        return (rows @ weight + bias).sigmoid()

    def attack_artefact(self, attack: ProbeSSR) -> Artefact:
        """What `attack.prepare` would fit, from the survey that is there already."""
        return attack.fitted(self.model, self.survey, self.prompts.train)

    def refused(self, texts: Sequence[str]) -> list[bool]:
        """Whether the answer to each text opens with a refusal, or ends before anything is said."""
        said = answers(self.model, texts, tokens=max(_ANSWER_TOKENS, opener_tokens(self.openers)))
        return [silent(answer) or opens_with_refusal(answer, self.openers) for answer in said]


def fit_subject(
    model: Model, options: Options, prompts: Prompts, folders: Sequence[Path], course: Course
) -> Subject:
    """Fit what is not in `folders`; the first of them has it afterwards.

    Raises:
        BadInput: damaged artefact files.
    """
    train = prompts.train
    (found, _), _ = course.run("survey", lambda: fit_survey(model, train, options.seed, folders))
    openers, _ = course.run("openers", lambda: fit_openers(model, train, folders))
    return Subject(model, prompts, options.seed, found, openers)


def array(tensor: Tensor) -> Array:
    """As numpy, in double precision."""
    values: Array = tensor.double().numpy().astype(np.float64)
    return values
