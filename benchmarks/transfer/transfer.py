"""`reroute transfer`: what was found on one model is sent to others, judged, and recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.lookup.specs import build, split
from attacks.core.template import DATE
from benchmarks.common.progress import say
from benchmarks.common.threads import fixed_threads, threads_for
from benchmarks.common.versions import versions
from benchmarks.harness.bench import Bench, Outcome, Setup, model_id, release_memory
from benchmarks.harness.cells import Cell, Settings, Task, cell_key
from benchmarks.harness.engine import BATCH_SIZE, execute
from benchmarks.harness.fitting import fit_coherent, fit_openers, fit_unknown
from benchmarks.harness.plan import split_judges
from benchmarks.harness.runner import judge_missing
from benchmarks.harness.timing import Bar, Stopwatch
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.inputs.loading import check_model
from benchmarks.inputs.models import resolve
from benchmarks.judges import default_judge
from benchmarks.judges.context import Context, note_behaviors, note_speech
from benchmarks.judges.endpoint import Endpoint, EndpointError, Reply, ask_all
from benchmarks.judging.passes import judge_folders
from benchmarks.judging.rejudge import judges_at_once, rejudge, with_answers
from benchmarks.storage.records import Record, Seconds, digest
from benchmarks.storage.store import Store, read_judgements, read_records
from benchmarks.transfer.recorded import Recorded, recorded, sendable

#: Begins the name of a target that is an endpoint.
ENDPOINT = "openai"
#: Answer length of records that do not say: that of suites which set none.
_TOKENS = 64


@dataclass(frozen=True)
class Options:
    """What is sent where."""

    folder: Path
    to: tuple[str, ...]
    """Models as `--model` names them, or `openai:model=NAME,url=URL` (the fields of `Endpoint`)."""
    out: Path | None = None
    """Results folder; None: that of the records, whose boards show both."""
    judges: tuple[str, ...] = ()
    """Empty: those that have judged in the folder."""
    behaviors: str | None = None
    """See `Context`."""
    train: str | None = None
    """What the targets' refusals and coherent answers are learned from."""
    attempts: int = 1
    """Candidates of each record."""
    limit: int | None = None
    """Behaviours of each attack on each model."""
    max_new_tokens: int | None = None
    """None: as long as the recorded answers might be."""
    system: str | None = None
    """None: the system prompt of the record."""
    device: str = "auto"
    device_map: str | None = None
    dtype: str = "auto"
    date: str = DATE


def transfer(options: Options) -> bool:
    """Sends all prompts that a target has not had yet; true if every one was answered and judged.

    Can be killed at any moment, and goes on when it is called again. Progress goes to stderr.

    Raises:
        BadInput: no records there, none that can be sent, an unknown model, set or judge, or an
            endpoint that does not answer.
    """
    for flag in ("attempts", "limit", "max_new_tokens"):
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise BadInput(f"--{flag.replace('_', '-')} {value}; valid: 1 or more")
    records, notes = sendable(read_records(options.folder), limit=options.limit)
    for note in notes:
        say(note)
    if not records:
        raise BadInput(f"'{options.folder}' holds no prompts that could be sent to another model")
    endpoints = {to: _endpoint(to) for to in options.to if _is_endpoint(to)}
    for name in options.to:
        if name not in endpoints:
            check_model(resolve(name), name, options)
    context = Context(options.folder, options.behaviors)
    behaviors = {record.key: context.behavior(record) for record in records}
    judges, later = _judges(options, list(behaviors.values()))
    train = load_behaviors(options.train) if options.train is not None else []
    out = options.out or options.folder
    with Store(out) as store:
        for note in store.notes:
            say(note)
        note_behaviors(out, behaviors.values())
        going = _Sending(
            options, store, behaviors, judges, tuple(row.for_attack() for row in train)
        )
        for name in options.to:
            own = [record for record in records if record.model != name]
            with Bar(total=len(own), unit="cell", desc=name, disable=None) as bar:
                going.send(name, own, endpoints.get(name), bar)
    complete = not going.failed
    return judge_folders([out], later, behaviors=options.behaviors) and complete


def _is_endpoint(name: str) -> bool:
    return name.startswith(f"{ENDPOINT}:") and "=" in name


def _endpoint(name: str) -> Endpoint:
    _, params = split("endpoint", name)
    if not params.get("model"):
        raise BadInput(f"endpoint '{name}': no model given; give {ENDPOINT}:model=NAME,url=URL")
    return build(f"endpoint '{ENDPOINT}'", Endpoint, params)


def _judges(
    options: Options, behaviors: Sequence[Behavior]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The judges that judge at once, and those that judge when all is sent."""
    known = dict.fromkeys(row.judge for row in read_judgements(options.folder))
    told = options.judges or tuple(name for name in known if judges_at_once(name))
    within, later = split_judges(told)
    return within or (default_judge(behaviors),), later


@dataclass
class _Sending:
    options: Options
    store: Store
    behaviors: Mapping[str, Behavior]
    """By the key of the record."""
    judges: tuple[str, ...]
    train: tuple[Behavior, ...]
    failed: bool = False

    def send(
        self, name: str, records: Sequence[Record], endpoint: Endpoint | None, bar: Bar
    ) -> None:
        """Everything to one target."""
        told = self.options.max_new_tokens
        if endpoint is not None and (opened := [row for row in records if row.openings]):
            say(f"not sent to {name}: {len(opened)} records with a prefilled answer")
            records = [row for row in records if not row.openings]
            bar.total = len(records)
        groups: dict[int, list[Record]] = {}
        for record in records:
            groups.setdefault(told or record.max_new_tokens or _TOKENS, []).append(record)
        if endpoint is not None:
            for tokens, group in groups.items():
                self._to_endpoint(endpoint, group, tokens, bar)
            return
        settings = Settings(0, self.options.attempts, "never", self.judges[0], self.judges, None)
        setup = Setup(
            source=resolve(name),
            name=name,
            device=self.options.device,
            device_map=self.options.device_map,
            dtype=self.options.dtype,
            system=self.options.system,
            date=self.options.date,
            settings=settings,
            openers=(),
            artefacts=(self.store.folder / "artefacts").resolve(),
            concurrency=1,
        )
        model = setup.load()
        setup = dataclasses.replace(setup, dtype=model.dtype, threads=threads_for(model))
        with fixed_threads(setup.threads):
            openers = fit_openers(model, self.train, (setup.artefacts,))
            coherence = fit_coherent(model, self.train, (setup.artefacts,))
            unknown = fit_unknown(model, self.train, openers, coherence, (setup.artefacts,))
            speech = note_speech(self.store.folder, openers, model.chat.markers, unknown=unknown)
            setup = dataclasses.replace(setup, openers=openers, coherence=coherence, speech=speech)
            for tokens, group in groups.items():
                own = dataclasses.replace(
                    setup, settings=dataclasses.replace(settings, max_new_tokens=tokens)
                )
                self._to_model(Bench(own, model), group, bar)
        del model
        release_memory()

    def _to_model(self, bench: Bench, records: Sequence[Record], bar: Bar) -> None:
        identity, settings = model_id(bench.model), bench.setup.settings
        cells: list[tuple[Cell, Record]] = []
        for record in records:
            attack = recorded(record, attempts=settings.attempts, system=self.options.system)
            behavior, openers = self.behaviors[record.key], bench.setup.openers
            key = cell_key(identity, attack, "", behavior, record.seed, settings, openers)
            cell = Cell(key, attack, behavior, record.seed, "")
            earlier = self.store.records.get(key)
            if earlier is not None and earlier.status == "ok":
                self.failed |= not judge_missing(bench, self.store, cell, earlier)
                bar.update()
            else:
                cells.append((cell, record))
        # Sorted, since a batch holds prompts of like length only and is filled up otherwise.
        cells.sort(key=lambda pair: len(pair[1].prompts[0]))
        for start in range(0, len(cells), BATCH_SIZE):
            batch = cells[start : start + BATCH_SIZE]
            outcomes = execute(bench, Task(tuple(cell for cell, _ in batch)), lambda *_: None)
            for outcome, (cell, record) in zip(outcomes, batch, strict=True):
                assert isinstance(cell.attack, Recorded)
                self._keep(_as_transferred(outcome, record, cell.attack), bar)

    def _to_endpoint(
        self, endpoint: Endpoint, records: Sequence[Record], tokens: int, bar: Bar
    ) -> None:
        """One request for each candidate."""
        context = Context(self.options.folder, self.options.behaviors)
        fresh: list[tuple[Record, Recorded]] = []
        for record in records:
            attack = recorded(record, attempts=self.options.attempts, system=self.options.system)
            made = _at_endpoint(record, attack, endpoint, tokens)
            earlier = self.store.records.get(made.key)
            if earlier is not None and earlier.status == "ok":
                missing = [name for name in self.judges if self.store.unjudged(earlier, name)]
                self.store.add_judgements(rejudge(context, earlier, missing))
                bar.update()
            else:
                fresh.append((made, attack))
        if not fresh:
            return
        who = f"the endpoint of '{endpoint.model}'"
        ask = endpoint.connect(who)

        def answered(item: tuple[Record, Recorded]) -> _Answered | str:
            watch, texts = Stopwatch(), []
            try:
                for messages in item[1].prompts:
                    turns = [turn._asdict() for turn in messages]
                    reply: Reply = ask(turns, max_tokens=tokens)
                    texts.append(reply.text)
            except EndpointError as error:
                return str(error)
            return _Answered(texts, watch.elapsed)

        for at, said in ask_all(answered, fresh, parallel=endpoint.parallel, who=who):
            made, _ = fresh[at]
            if isinstance(said, str):
                self._keep(Outcome(dataclasses.replace(made, status="error", error=said)), bar)
                continue
            made = with_answers(made, range(len(said.texts)), said.texts)
            made = dataclasses.replace(made, seconds=Seconds(generate=said.seconds))
            self._keep(Outcome(made, tuple(rejudge(context, made, self.judges))), bar)

    def _keep(self, outcome: Outcome, bar: Bar) -> None:
        record = outcome.record
        self.store.add(*outcome)
        bar.update()
        if record.status != "ok":
            self.failed = True
            say(f"{record.model} · {record.attack} · {record.behavior_id}: {record.error}")


@dataclass(frozen=True)
class _Answered:
    texts: Sequence[str]
    seconds: float


def _as_transferred(outcome: Outcome, source: Record, attack: Recorded) -> Outcome:
    """The outcome under the name of the attack that has found the prompts."""
    record = dataclasses.replace(outcome.record, **_inherited(source, attack))
    return Outcome(record, outcome.judgements)


def _inherited(source: Record, attack: Recorded) -> dict[str, Any]:
    """The fields of a transferred record that tell what was sent, and that no search was done."""
    return {
        "attack": source.attack,
        "params": source.params,
        "attack_hash": source.attack_hash,
        "threat_model": source.threat_model,
        "origin": source.key,
        "origin_model": source.model,
        "system": next((turn.content for turn in attack.prompts[0] if turn.role == "system"), None),
        "source": source.source,
        "stop": source.stop,
        "budget_seconds": source.budget_seconds,
        "losses": (),
        "steps": 0,
        "first_success": None,
    }


def _at_endpoint(source: Record, attack: Recorded, endpoint: Endpoint, tokens: int) -> Record:
    """The record of what is sent to an endpoint, still without answers."""
    inherited = _inherited(source, attack)
    where = {"endpoint": endpoint.url, "model": endpoint.model, "max_new_tokens": tokens}
    sent = [[tuple(turn) for turn in messages] for messages in attack.prompts]
    return dataclasses.replace(
        source,
        **{
            **inherited,
            "key": digest({**where, "origin": source.key, "sent": sent}),
            "model": endpoint.model,
            "revision": "",
            "dtype": "",
            "status": "ok",
            "error": "",
            "artefact": "",
            "verdict": "",
            "prompts": source.prompts[: len(attack.prompts)],
            "completions": (),
            "openings": source.openings[: len(attack.prompts)],
            "garbled": (),
            "cut": (),
            "samples": 0,
            "max_new_tokens": tokens,
            "speech": "",
            "verifications": 0,
            "seconds": Seconds(),
            "first_token_kl": None,
            "answer_kl": None,
            "tokens": {"forward": 0, "backward": 0},
            "flops": 0,
            "peak_memory_bytes": 0,
            "concurrency": 1,
            "versions": versions(),
            "hardware": "",
            "suite": "",
        },
    )
