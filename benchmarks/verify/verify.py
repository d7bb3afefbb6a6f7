"""`reroute verify`: a fresh process, float32, a batch of one, nothing of a search left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from attacks.core.errors import BadInput
from attacks.core.model import Model, PlainModel
from attacks.core.template import DATE
from benchmarks.common.threads import fixed_threads
from benchmarks.harness.bench import release_memory
from benchmarks.harness.failures import failure_of
from benchmarks.harness.timing import Bar
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.inputs.models import resolve
from benchmarks.judges.context import Context
from benchmarks.judging.rejudge import rejudge, with_answers
from benchmarks.verify.answers import (
    TOKENS,
    Anew,
    Changed,
    How,
    behind_defenses,
    changes_of,
    from_strings,
    is_merged,
    with_changes,
)
from benchmarks.verify.claims import (
    CHANGES,
    PLAIN,
    Claim,
    Condition,
    by_model,
    claims_of,
    split_revision,
)

#: How claims can be verified: from the string, with the attack's changes, or not.
_SIDES = ("string", "changed", "lost", "defended")

Loaded = TypeVar("Loaded", Model, PlainModel)

#: same: word for word; other: another answer that is a success as well; failed: another answer
#: that is none; unverifiable: no answer could be made.
Status = Literal["same", "other", "failed", "unverifiable"]


@dataclass(frozen=True)
class Options:
    """What is verified, and on what."""

    folder: Path
    model: str | None = None
    """Another checkpoint than the recorded ones."""
    behaviors: str | None = None
    train: str | None = None
    also: tuple[str, ...] = ()
    """Conditions beside `PLAIN`: `DTYPE:BATCH`."""
    limit: int | None = None
    """Successes of each attack on each model."""
    device: str = "auto"
    system: str | None = None
    max_new_tokens: int = TOKENS


@dataclass(frozen=True)
class Finding:
    """What became of a claim under one condition."""

    claim: Claim
    model: str
    condition: Condition
    status: Status
    reason: str = ""
    """One line, unless it reproduces."""

    @property
    def reproduces(self) -> bool:
        """Whether the regenerated answer is a success."""
        return self.status in ("same", "other")


def verify(options: Options) -> list[Finding]:
    """What becomes of every claimed success, `PLAIN` first. Progress goes to stderr.

    Raises:
        BadInput: no records there, an unknown set, model or condition.
    """
    for name, value in (("limit", options.limit), ("max-new-tokens", options.max_new_tokens)):
        if value is not None and value < 1:
            raise BadInput(f"--{name} {value}; valid: 1 or more")
    conditions = list(dict.fromkeys([PLAIN, *map(Condition.parse, options.also)]))
    claims = claims_of(options.folder, limit=options.limit)
    context = Context(options.folder, options.behaviors)
    train = load_behaviors(options.train) if options.train is not None else []
    how = How(options.system, options.max_new_tokens, tuple(row.for_attack() for row in train))
    if options.model is not None:
        resolve(options.model)
    going = _Verifying(options, how, context)
    findings = []
    # One thread: with more, sums may round otherwise.
    with (
        fixed_threads(1),
        Bar(total=len(claims) * len(conditions), unit="success", disable=None) as bar,
    ):
        for condition in conditions:
            for (name, revision), group in by_model(claims).items():
                for finding in going.findings(name, revision, group, condition):
                    findings.append(finding)
                    bar.update()
                release_memory()
    return findings


@dataclass(frozen=True)
class _Verifying:
    options: Options
    how: How
    context: Context

    def findings(
        self, name: str, revision: str, claims: Sequence[Claim], condition: Condition
    ) -> Iterator[Finding]:
        """Those of the claims about one model, in any order."""
        sides: dict[str, list[Claim]] = {name: [] for name in _SIDES}
        for claim in claims:
            side = "changed" if claim.record.threat_model in CHANGES else "string"
            side = "defended" if claim.record.defense else side
            side = "lost" if claim.record.threat_model == "embedding" else side
            sides[side].append(claim)
        told = self.options.model or name
        for claim in sides["lost"]:
            reason = "the attack's embeddings are not stored; run it again"
            yield Finding(claim, told, condition, "unverifiable", reason)
        if sides["defended"] and self.options.model is not None:
            for claim in sides["defended"]:
                reason = f"its defence was fitted to {name}"
                yield Finding(claim, told, condition, "unverifiable", reason)
        elif sides["defended"]:
            yield from self._with_changes(name, revision, sides["defended"], condition)
        if sides["string"]:
            yield from self._from_strings(told, revision, sides["string"], condition)
        if sides["changed"] and self.options.model is not None:
            for claim in sides["changed"]:
                reason = f"its artefact was fitted to {name}"
                yield Finding(claim, told, condition, "unverifiable", reason)
        elif sides["changed"]:
            yield from self._with_changes(name, revision, sides["changed"], condition)

    def _from_strings(
        self, told: str, revision: str, claims: Sequence[Claim], condition: Condition
    ) -> Iterator[Finding]:
        try:
            model = self._loaded(PlainModel, told, revision, condition)
        except BadInput as error:
            yield from self._unloaded(told, claims, condition, error)
            return
        changed = self._changed(model.revision, revision)
        made = from_strings(model, claims, self.how, condition.batch)
        for claim, anew in zip(claims, made, strict=True):
            yield self._finding(claim, told, condition, anew, changed)

    def _with_changes(
        self, name: str, revision: str, claims: Sequence[Claim], condition: Condition
    ) -> Iterator[Finding]:
        """Edits are merged into the weights of a plain model; activations take hooks."""
        try:
            model = self._loaded(Model.load, name, revision, condition)
        except BadInput as error:
            yield from self._unloaded(name, claims, condition, error)
            return
        changed = self._changed(split_revision(model.revision)[0], revision)
        folder, context = self.options.folder, self.context
        if claims[0].record.defense:
            made = behind_defenses(model, claims, self.how, folder=folder, context=context)
            for claim, anew in zip(claims, made, strict=True):
                yield self._finding(claim, name, condition, anew, changed)
            return
        hooked, merged = list[Changed](), list[Changed]()
        known = changes_of(model, claims, self.how, folder=folder, context=context)
        for claim, own in zip(claims, known, strict=True):
            if isinstance(own, Anew):
                yield self._finding(claim, name, condition, own, changed)
            else:
                (merged if is_merged(own) else hooked).append(Changed(claim, own))
        made = with_changes(model, hooked, self.how, condition.batch)
        for (claim, _), anew in zip(hooked, made, strict=True):
            yield self._finding(claim, name, condition, anew, changed)
        if merged:
            del model  # One in memory at a time.
            release_memory()
            plain = self._loaded(PlainModel, name, revision, condition)
            made = with_changes(plain, merged, self.how, condition.batch)
            for (claim, _), anew in zip(merged, made, strict=True):
                yield self._finding(claim, name, condition, anew, changed)

    def _loaded(
        self, load: Callable[..., Loaded], told: str, revision: str, condition: Condition
    ) -> Loaded:
        return load(
            self._source(told, revision),
            name=told,
            device=self.options.device,
            dtype=condition.dtype,
            date=split_revision(revision)[1] or DATE,
        )

    def _source(self, told: str, revision: str) -> str:
        """What to load: of a model on the Hub the revision that was attacked."""
        source, own = resolve(told), split_revision(revision)[0]
        if self.options.model is None and source == told and not Path(source).is_dir():
            return source if "@" in source or not own else f"{source}@{own}"
        return source

    def _changed(self, loaded: str, recorded: str) -> str:
        """A note where the model's files are not those of the run."""
        own = split_revision(recorded)[0]
        if self.options.model is not None or loaded == own:
            return ""
        return f" (the model's files have changed since: {own or 'unknown'}, now {loaded})"

    def _unloaded(
        self, told: str, claims: Sequence[Claim], condition: Condition, error: BadInput
    ) -> Iterator[Finding]:
        if self.options.model is not None or condition != PLAIN:
            raise error
        for claim in claims:
            yield Finding(claim, told, condition, "unverifiable", str(error))

    def _finding(
        self, claim: Claim, told: str, condition: Condition, anew: Anew, note: str
    ) -> Finding:
        if anew.reason:
            return Finding(claim, told, condition, "unverifiable", anew.reason + note)
        if anew.answer == claim.completion and self.options.model is None:
            return Finding(claim, told, condition, "same")
        try:
            answered = with_answers(claim.record, [claim.index], [anew.answer])
            verdicts = rejudge(self.context, answered, claim.judges)
        except Exception as error:
            reason = f"another answer, which cannot be judged: {failure_of(error).reason}{note}"
            return Finding(claim, told, condition, "unverifiable", reason)
        labels = [f"{one.judge} says {one.label}" for one in verdicts if not one.success]
        if labels:
            reason = f"another answer: {', '.join(labels)}{note}"
            return Finding(claim, told, condition, "failed", reason)
        return Finding(claim, told, condition, "other")
