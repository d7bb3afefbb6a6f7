"""What an inspection finds, as plain numbers: the content of `data.json`, by section."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any

Row = list[float]
Matrix = list[Row]

#: The groups of `Curves`, in the order in which they are drawn, and what each is called.
GROUPS = {
    "harmless": "harmless",
    "harmful": "harmful",
    "random": "harmful + random suffix",
    "ablation": "harmful, direction ablated",
    "ssr": "harmful + SSR suffix",
}


@dataclass(frozen=True)
class Layers:
    """Probes and directions at each block's output, fitted on the training prompts."""

    accuracy: Row
    """Of the probe, on training prompts that it was not fitted on."""
    separation: Row
    """Of the class means along the direction, in pooled standard deviations."""
    log_loss: list[float | None]
    """Of the probe, nats, on the same prompts."""
    effect: list[float | None]
    """Of ablating the direction, 0 to 1, and 0 where that breaks the model (`kl` above
    `survey.BROKEN`); None at the last layer, and where nothing is refused."""
    kl: list[float | None]
    """What ablating the direction does to harmless prompts, nats; None where `effect` is."""
    chosen: int
    """The layer that an attack would aim at."""
    ablation_layer: int
    """Block at whose input the direction to ablate was read."""
    by_sets: bool
    """Whether the first layer's probe is as good as any: see `survey.reads_sets`."""
    cosines: Matrix
    """(L, L) between the layers' directions."""


@dataclass(frozen=True)
class Move:
    """Where an attack carries one prompt, in the plane of `Plane`."""

    behavior: str
    start: Row
    end: Row
    harmless_before: float
    """P(harmless) by the chosen layer's probe."""
    harmless_after: float
    plain: bool
    """Whether the answer to the prompt itself opens with a refusal."""
    random: bool
    """Whether that to the prompt with a random suffix does."""
    refused: bool
    """Whether that to the attacked prompt does."""


@dataclass(frozen=True)
class Plane:
    """The first two principal components of the chosen layer's activations."""

    layer: int
    explained: Row
    """(2,) shares of the variance."""
    harmful: Matrix
    """(N, 2)"""
    harmless: Matrix
    moves: list[Move]


@dataclass(frozen=True)
class Attribution:
    """Which depths and heads speak for refusal; empty lists where the model does not refuse."""

    refuse: list[str]
    """Tokens that open refusals."""
    accept: list[str]
    """Tokens that open answers."""
    harmful: Row
    """(L + 1,) of the stream at each depth, mean over harmful test prompts."""
    harmless: Row
    patching: Matrix
    """(L, H) share of the refusal that a head carries over from harmful training prompts."""
    direct: Matrix
    """(L, H) what a head writes for refusal, mean over harmful test prompts."""
    heads: list[list[int]]
    """(layer, head) of those that an attack would aim at."""
    note: str = ""
    """Why something is missing."""


@dataclass(frozen=True)
class Curves:
    """Cosines with each layer's direction, prompt by prompt."""

    prompts: list[str]
    """Ids of the harmful behaviours."""
    groups: dict[str, Matrix]
    """By group (see `GROUPS`): (N, L)."""


@dataclass(frozen=True)
class Angles:
    """Principal angles between subspaces, degrees ascending."""

    dimension: int
    width: int
    """D, the dimension of the space that they lie in."""
    between: Matrix
    """(L, K) harmful against harmless prompts."""
    between_halves: Matrix
    """(L, K) one half of the harmful prompts against the other half of the harmless ones."""
    within_halves: Matrix
    """(L, K) one half of the harmful prompts against the other."""
    chance: Row
    """(K,) mean over random subspaces."""
    draws: int


@dataclass(frozen=True)
class Path:
    """Whether the direction in one block's MLP works through what reads it; see `Faithfulness`."""

    layer: int
    verdict: str
    rank: int
    dimension: int
    read: float
    unread: float
    alignment: float
    spread: float
    separation: float
    reach: float
    share: dict[str, float]
    """Effect of each patch, 0 to 1."""
    flips: dict[str, float | None]
    """Interchange accuracy of each patch."""


@dataclass(frozen=True)
class Paths:
    """The direction in the MLPs, block by block; empty where there is nothing to test."""

    rows: list[Path]
    note: str = ""
    """Why it is empty."""


@dataclass(frozen=True)
class LensRow:
    """The tokens that one layer's direction raises and lowers most, with their logits."""

    layer: int
    raised: list[str]
    raised_logits: Row
    lowered: list[str]
    lowered_logits: Row


@dataclass(frozen=True)
class Inverted:
    """A string found by searching for the refusal direction."""

    text: str
    start: float
    """Cosine of the filling that the search began with."""
    cosine: float
    refused: bool


@dataclass(frozen=True)
class Reverse:
    """Strings whose activation points along the chosen layer's direction."""

    layer: int
    slots: int
    harmful: float
    """Mean cosine of harmful test prompts."""
    harmless: float
    found: list[Inverted]


#: The groups of `Thinking`, and what each is called.
THOUGHT = {
    "refused": "harmful, refused",
    "answered": "harmful, answered",
    "harmless": "harmless, answered",
}


@dataclass(frozen=True)
class Ablated:
    """What becomes of test prompts when some heads are ablated."""

    what: str
    heads: list[list[int]]
    """(layer, head); empty for a mean over random choices."""
    harmful: float
    """Share of harmful prompts that is refused."""
    harmless: float


@dataclass(frozen=True)
class Thinking:
    """Refusal while the model thinks: curves and cliffs by group (see `THOUGHT`) and layer."""

    layers: list[int]
    """K, those that probes were fitted at."""
    accuracy: Row
    """Of the probes, on training transcripts that they were not fitted on."""
    matched: Row
    """The same on harmful test transcripts alone; not a number where all of them ended alike."""
    counts: dict[str, int]
    """Test transcripts."""
    closing: int
    """Tokens that close the thinking."""
    whole: dict[str, Matrix]
    """(K, 100) mean score over the thinking, curves stretched to one length."""
    late: dict[str, Matrix]
    """(K, W) mean score over the last tokens, curves aligned at the end."""
    lens: dict[str, Matrix]
    """(K, W) the control: P(refusal) by logit lens."""
    cliffs: dict[str, list[dict[str, float]]]
    """For each layer the mean over transcripts of each metric."""
    agreement: Row
    """Spearman correlation of the two ranks of cliffs, harmful transcripts, by layer."""
    written: Matrix
    """(L, H) what each head writes for refusal at the last token."""
    ablated: list[Ablated]
    note: str = ""
    """Why something is missing."""


@dataclass(frozen=True)
class Report:
    """One inspection."""

    model: str
    revision: str
    dtype: str
    system: str | None
    train: str
    behaviors: str
    seed: int
    n_train: list[int]
    """Harmful and harmless prompts."""
    n_test: list[int]
    steps: int
    """Of each attack's search."""
    width: int
    """Candidates of each step."""
    refuses: bool
    """Whether some tokens open refusals: likely on harmful and unlikely on harmless prompts."""
    layers: Layers
    plane: Plane
    attribution: Attribution
    curves: Curves
    angles: Angles
    paths: Paths
    lens: list[LensRow]
    reverse: Reverse
    thinking: Thinking | None = None
    """None where the model does not think before it answers."""
    texts: bool = True
    """Whether it holds texts; see `shareable`."""

    def shareable(self) -> Report:
        """Without the system prompt and the strings that searches have found.

        What stays are names and ids of sets and behaviours, and single tokens of the vocabulary.
        """
        found = [replace(row, text="") for row in self.reverse.found]
        reverse = replace(self.reverse, found=found)
        return replace(self, system=None, reverse=reverse, texts=False)

    def to_json(self) -> str:
        """The report as JSON; numbers that are not finite become null."""
        return json.dumps(plain(asdict(self)), indent=1, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """A JSON value of dicts and lists, with null for what is not finite."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
