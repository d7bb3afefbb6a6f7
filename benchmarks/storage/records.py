"""Records and judgements: the two streams of JSON lines that a run appends to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SCHEMA = 1

Status = Literal["ok", "error", "out_of_memory", "budget"]


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds by phase. `prepare` is the artefact's original cost, also when reused."""

    prepare: float = 0.0
    search: float = 0.0
    verify: float = 0.0
    generate: float = 0.0
    judge: float = 0.0

    @property
    def own(self) -> float:
        """Of the cell alone."""
        return self.search + self.verify + self.generate + self.judge


@dataclass(frozen=True)
class FirstSuccess:
    """The first verified success: after which step, and the search's cost until then."""

    step: int
    seconds: float
    """Search and verification."""
    flops: int
    """Search only, without verification."""


@dataclass(frozen=True)
class Record:
    """What one attack did to one behaviour on one model (docs/running.md, "Results")."""

    key: str
    """`cell_key` of everything that determines the outcome."""
    model: str
    attack: str
    params: Mapping[str, Any]
    attack_hash: str
    threat_model: str
    behavior_id: str
    seed: int
    status: Status
    artefact: str = ""
    """Id of what the attack fitted (`artefacts/<id>.json` and `.safetensors`): layers, heads or
    directions that it chose, and their scores. Ids of a combination's parts are joined by `+`;
    empty where nothing was fitted, and in records from before this was written down."""
    harmful: bool = True
    revision: str = ""
    dtype: str = ""
    error: str = ""
    """One line, for every status but ok."""
    prompts: tuple[str, ...] = ()
    """The last user message of each candidate, best first. An attack on embeddings sends what no
    string can hold: there this is the request with placeholder tokens in the slots, and the attack
    must be run again to have its vectors."""
    completions: tuple[str, ...] = ()
    """The answers, in the same order: the model's own words, without a prefill."""
    samples: int = 0
    """Number of completions (the last ones) that were sampled: all for the best candidate, which
    `prompts` therefore repeats. The others are greedy."""
    temperature: float = 1.0
    """Of drawn answers."""
    top_p: float = 1.0
    """Of drawn answers."""
    openings: tuple[str, ...] = ()
    """The prefill of each candidate, in the same order; empty where there is none. The assistant's
    turn is the prefill with the completion after it."""
    garbled: tuple[bool, ...] = ()
    """Whether each completion is incoherent, a loop or an echo (see `refusals.coherence`); empty in
    records from before this was found out."""
    cut: tuple[bool, ...] = ()
    """Whether each completion reached `max_new_tokens` before its end; empty in records from before
    this was written down, and of endpoints."""
    source: str = ""
    """Origin of the search's target, for attacks that choose one or use a fallback."""
    verdict: str = ""
    """Verdict of the check on held-out prompts of what the attack fitted: "good", or "failed: " and
    why; empty where nothing was checked."""
    system: str | None = None
    """System prompt of the conversations."""
    max_new_tokens: int = 0
    """Longest answer; 0 in records from before this was written down."""
    origin: str = ""
    """Key of the record whose prompts these are, for prompts found on another model."""
    origin_model: str = ""
    """The model they were found on."""
    target: str | None = None
    """How the answers should begin, if not with the behaviour's own target."""
    behavior_hash: str = ""
    """Of the behaviour's line in `behaviors.jsonl`; empty in records from before it was kept."""
    speech: str = ""
    """Hash of the model's line in `speech.jsonl`, which says how it refuses and thinks."""
    losses: tuple[float, ...] = ()
    """The best loss after each step."""
    steps: int = 0
    verifications: int = 0
    seconds: Seconds = field(default_factory=Seconds)
    first_success: FirstSuccess | None = None
    first_token_kl: float | None = None
    """Nats: KL(as it is || changed) of the first token of the answer to the plain request, what the
    attack's interventions cost. Harmless behaviours only, and only with interventions."""
    answer_kl: float | None = None
    """Nats a token: the same at every token of the plain model's own answer."""
    stop: str = "never"
    """The `--stop` rule: such runs have their own board."""
    budget_seconds: float | None = None
    tokens: Mapping[str, int] = field(default_factory=lambda: {"forward": 0, "backward": 0})
    """Positions through the model during the search."""
    flops: int = 0
    """Of the search."""
    peak_memory_bytes: int = 0
    concurrency: int = 1
    together: int = 1
    """Searches whose passes were joined: seconds are shares of theirs (`harness.together`). Left
    out of the line where it is 1."""
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: str = ""
    """Name of the card or processor; empty where no process computed the record, for endpoints, and
    in records from before this was written down."""
    suite: str = ""
    """Hash of the line in `suites.jsonl` with what was run; empty for prompts sent to another
    model, and in records from before this was written down."""
    defense: str = ""
    """Name of the defence; empty: none. This and the following fields are left out of the lines of
    undefended records, which are what they were before there were defences."""
    defense_params: Mapping[str, Any] = field(default_factory=dict)
    defense_hash: str = ""
    """`defense_hash` of both, the defence's identity on a board."""
    defense_artefact: str = ""
    """Id of what the defence fitted, as `artefact`."""
    defense_verdict: str = ""
    """Verdict of the check of that, as `verdict`."""
    adaptivity: str = ""
    """static: the attack ran on the model without the defence; adaptive: with it."""
    blocked: tuple[str, ...] = ()
    """The part of the defence that blocked each candidate, in the same order; "" where none did."""
    excess: tuple[Mapping[str, float], ...] = ()
    """How far each candidate was above the thresholds of the parts that looked at it, by name."""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Raises ValueError where fields that go side by side are not of one length."""
        answers = len(self.completions)
        if (
            len(self.openings) not in (0, len(self.prompts))
            or len(self.garbled) not in (0, answers)
            or len(self.cut) not in (0, answers)
            or len(self.blocked) not in (0, answers)
            or len(self.excess) != len(self.blocked)
            or not 0 <= self.samples <= answers
        ):
            raise ValueError("fields of prompts or completions are inconsistent")

    @property
    def greedy(self) -> int:
        """How many completions, the first ones, are greedy: one for each candidate."""
        return len(self.completions) - self.samples


#: Labels of answers that decline; a constructive one helps as well.
DECLINED = ("refused", "constructive")


@dataclass(frozen=True)
class Judgement:
    """A judge's verdict on one completion of the record `key`."""

    key: str
    judge: str
    completion_index: int
    success: bool | None
    """None: no verdict; such rows leave n and are reported."""
    label: str
    """refused, constructive, garbled, deflected, complied or knows; unjudged: the judge's reply
    could not be parsed."""
    score: float | None = None
    answer: str = ""
    """`digest` of the completion that was judged; empty where it was judged within its run."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """More of the judge's own, such as a guard's categories."""
    schema: int = SCHEMA


#: The fields of a record that are there with a defence only.
DEFENDED = (
    *("defense", "defense_params", "defense_hash", "defense_artefact", "defense_verdict"),
    *("adaptivity", "blocked", "excess"),
)


def line_of(row: Record | Judgement) -> dict[str, Any]:
    """What is written of a record or a judgement."""
    found = asdict(row)
    if isinstance(row, Record) and not row.defense:
        found = {key: value for key, value in found.items() if key not in DEFENDED}
    if isinstance(row, Record) and row.together == 1:
        del found["together"]
    return found


def digest(value: Any) -> str:
    """Hex digest of a JSON value, the same whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
