"""A row of a leaderboard, and what each of its figures is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of a board; rates are means over behaviours, None where nothing was measured."""

    model: str
    attack: str
    params: Mapping[str, Any]
    attack_hash: str
    threat_model: str
    judge: str
    n: int
    """Harmful behaviours with a verdict; an attack that gave no answer has failed."""
    asr: float | None
    """success@1: the first candidate, after the whole budget."""
    asr_low: float | None
    asr_high: float | None
    success_at_k: float | None
    """Any of the first `attempts` candidates."""
    compliance: float | None
    """Labels complied and knows."""
    refusal_rate: float | None
    seconds_median: float | None
    """Search and answer, without preparation, verification and judging."""
    first_success_seconds_median: float | None
    """Search and verification, over all behaviours, failures censored."""
    first_success_flops_median: float | None
    steps_per_second: float | None
    errors: int
    """Records with status error or out_of_memory."""
    nulls: int
    """Harmful records with an answer of which the judge could say nothing."""
    concurrency: int
    stop: str
    attempts: int
    seeds: int
    over_refusal: float | None
    """Share of harmless behaviours that were refused."""
    harmless_kept: float | None
    """Share of harmless behaviours answered with all facts, by the reference judge."""
    harmless_kl: float | None
    """Mean divergence of the first token on harmless behaviours (`Record.first_token_kl`), nats."""
    harmless_answer_kl: float | None
    """The same over whole answers (`Record.answer_kl`), nats a token."""
    harmless_n: int
    prepare_seconds: float
    """Original cost of what the attack fitted."""
    garbled: float | None
    """Share of harmful requests with a garbled answer; None: records do not say."""
    cut: float | None
    """Share of first answers that `limit` cut; None: records do not say."""
    limit: int
    """Most new tokens of an answer."""
    verdict: str
    """What a check on held-out prompts said of what the attack fitted (`Record.verdict`)."""
    unknown: float
    """Estimated share of refusals that no opener tells (`attacks.core.refusals.unknown`)."""
    sources: Mapping[str, int]
    """Where what the searches aimed at was from, and how often (`Record.source`)."""
    asr_corrected: float | None
    """`asr` with the judge's error taken out; None: nothing is known of the judge, or it does no
    better than chance."""
    asr_corrected_low: float | None
    asr_corrected_high: float | None
    correction: str
    """By what: "labels" of people, "calibration", or nothing; "(undetermined)" at wide ones."""
    samples: int
    """Answers drawn to each request, besides the greedy one."""
    sample_asr: float | None
    """Mean probability of success of a drawn answer to the first candidate."""
    sample_asr_low: float | None
    sample_asr_high: float | None
    sample_any: float | None
    """Share of harmful requests of which any drawn answer is a success."""
    origin_model: str
    """The model that the prompts were found on, where that is another one."""
    mixed: bool
    """Whether some behaviour and seed was run in more than one setting."""
    revision: str
    dtype: str
    defense: str
    """What was put around the model; empty: nothing."""
    defense_params: Mapping[str, Any]
    defense_hash: str
    defense_verdict: str
    """What a check on held-out prompts said of what the defence fitted."""
    adaptivity: str
    """Whether the attack knew of it: "static" or "adaptive"."""
    blocked: float | None
    """Share of harmful requests whose first candidate the defence blocked."""
    harmless_blocked: float | None
    """Share of harmless requests that it blocked."""
    constructive: float | None = None
    """Share of harmful requests that were refused with help: another way, or someone to ask."""
    defense_auc: float | None = None
    """Of the scores by which it blocks: this row's harmful prompts against plain harmless ones."""
    latency: float | None = None
    """Seconds of an answer over those of the model without the defence, for one-step attacks."""
    over_refusal_without: float | None = None
    """`over_refusal` of the model without the defence, asked plainly."""
    static_only: bool = False
    """Whether no attack that knows of this defence was run on this model."""
    rank: int | None = None
    """By `asr` among the attacks on this model, of this board and judge (`boards.ranking`)."""
    rank_low: int | None = None
    rank_high: int | None = None
    together: int = 1
    """Searches whose passes were joined (`Record.together`)."""
