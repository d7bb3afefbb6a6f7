"""A search that was killed goes on from its checkpoint as if nothing had happened."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from test_contract import artefact as fitted
from test_contract import small, train

from attacks import Attack, available, load, parse_spec
from attacks.attack import State, Step
from attacks.core.artefact import Artefact
from attacks.random_search import RandomSearch
from attacks.registry import ATTACKS
from benchmarks.harness import artefacts
from benchmarks.harness.bench import Bench, model_id
from benchmarks.harness.cells import Cell, Settings, Task, cell_key
from benchmarks.harness.checkpoints import Checkpoint, Checkpoints, encode
from benchmarks.harness.engine import execute
from benchmarks.harness.fitting import fit_attack
from benchmarks.harness.resuming import Resumable
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.storage.records import Record
from conftest import pocket
from runs import make_setup, plain

#: Those that are fitted for long, and are left out by `make test`.
LONG = ("gcg+refusal-direction", "ssr-attention", "ssr-latents")
#: What searches can be told to do differently, one group of options each.
OPTIONS = (
    "gcg:steps=5,width=192,slots=6",  # Openings of the loss leave candidates.
    "gcg:steps=5,width=8,slots=4,buffer=0,n_replace=2",
    "gcg:steps=5,width=8,slots=4,buffer=4,patience=1,replace_coefficient=1.5",
    "gcg:steps=5,width=8,slots=4,moves.momentum=0.4,moves.fresh=true,moves.match=true",
    "gcg:steps=5,width=8,slots=4,moves.draw='ranked',moves.distance=1.0,moves.merge=3",
    "gcg:steps=5,width=32,slots=4,draft.model='pocket-qwen2'",
    "random-search:steps=6,width=192,slots=8",
    "ssr-probe:steps=5,width=16,slots=4,keep='rank'",
    "ssr-probe:steps=5,width=16,slots=4,keep='with'",
    "gcg:steps=5,width=8,slots=4,moves.starts=4,moves.first=2",
    "strong:steps=8,width=4,slots=2,starts=2,first=1,merge=0,restart=1",
    "strong:steps=8,width=4,slots=3,starts=1,first=1,route='probe'",
    "strong:steps=5,width=4,slots=2,starts=1,first=1,target='given'",
    "soft-prompt:steps=5,slots=4,target='random',every=2",
    "pgd:steps=6,slots=4,patience=1",
)
#: Numbers with which a search that ends by itself takes its time.
SLOW = {"strong": {"starts": 1, "first": 1, "slots": 2, "merge": 0}}
SEARCHES = [name for name, cls in sorted(available().items()) if cls.searches]


class Killed(BaseException):
    """Stands for a process that ends: nothing in the suite catches it."""


@cache
def attack_of(spec: str) -> Attack:
    if ":" in spec:
        return parse_spec(spec)
    # One step more, so that there is something left after the second kill.
    attack = small(spec)
    if hasattr(attack, "parts"):
        return load(spec, **{part.name: {"steps": 5} for part in attack.parts if part.searches})
    stops = {"early_stop": None} if hasattr(attack, "early_stop") else SLOW.get(spec, {})
    return dataclasses.replace(attack, steps=5, **stops)


@cache
def artefact_of(spec: str) -> Artefact:
    name = spec.partition(":")[0]
    if "draft" in spec or "probe'" in spec:
        rng = torch.Generator().manual_seed(1)
        return attack_of(spec).prepare(pocket("pocket-llama"), train(), rng=rng)
    return fitted(name)


def bench_for(spec: str, folder: Path, every: float = 0.0) -> Bench:
    setup = make_setup(
        "",
        folder,
        name="pocket-llama",
        device="cpu",
        dtype="float32",
        settings=Settings(8, 2, "never", "phrases", ("phrases",), None),
        checkpoints=Checkpoints(folder, every),
    )
    bench = Bench(setup, pocket("pocket-llama"))
    bench.artefact = lambda cell: artefact_of(spec)  # type: ignore[method-assign]
    return bench


def cell_for(spec: str, bench: Bench) -> Cell:
    attack, behavior = attack_of(spec), load_behaviors("pocket-test")[0]
    setup = bench.setup
    key = cell_key(model_id(bench.model), attack, "", behavior, 0, setup.settings, setup.openers)
    return Cell(key, attack, behavior, 0, "")


class Ran(NamedTuple):
    """What a process that was not killed has to show."""

    record: Record
    last: Checkpoint | None
    """Its last checkpoint."""
    first: int
    """The first step that it took."""


def run(spec: str, folder: Path, *, kill_at: int | None = None) -> Ran:
    """The cell, searched until the step at which it is killed."""
    bench = bench_for(spec, folder)
    cell = cell_for(spec, bench)
    seen = []

    def on_step(steps: int, loss: float | None) -> None:
        seen.append(steps)
        if steps == kill_at:
            raise Killed

    (outcome,) = execute(bench, Task((cell,)), on_step)
    assert bench.setup.checkpoints is not None
    last = bench.setup.checkpoints.load(cell.key, bench.model.device)
    return Ran(outcome.record, last, seen[0])


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize(
    "spec",
    [
        *(name for name in SEARCHES if name not in LONG),
        *(pytest.param(spec, marks=pytest.mark.slow) for spec in (*LONG, *OPTIONS)),
    ],
)
def test_a_killed_search_ends_as_an_undisturbed_one(spec: str, tmp_path: Path) -> None:
    whole = run(spec, tmp_path / "undisturbed")
    assert whole.record.status == "ok" and whole.record.steps >= 3
    if whole.last is None:
        pytest.skip("this attack keeps no checkpoint")
    for kill_at in (whole.record.steps - 1, whole.record.steps):
        with pytest.raises(Killed):
            run(spec, tmp_path / "killed", kill_at=kill_at)
    resumed = run(spec, tmp_path / "killed")
    # It began where the second process had ended, with a step that both have taken.
    assert resumed.first == whole.record.steps
    assert plain(resumed.record) == plain(whole.record)
    # Everything that a search goes on from is equal to the bit, its generator included.
    assert resumed.last is not None and whole.last.state.keys() == resumed.last.state.keys()
    assert all(same(whole.last.state[name], resumed.last.state[name]) for name in whole.last.state)


def test_a_killed_fit_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """Of a universal suffix, killed in each of its stages and after its last step."""
    model = pocket("pocket-llama")
    attack = load("universal-gcg", steps=5, width=8, topk=8, slots=3, behaviors=2, stage=3)

    def fit(kill_at: int = 0, state: State | None = None) -> list[Any]:
        rng = torch.Generator().manual_seed(1)
        steps = attack.fitting(model, train(), rng=rng, state=state)
        return list(islice(steps, kill_at or None))

    whole = fit()
    assert (
        whole[-1].hash == attack.prepare(model, train(), rng=torch.Generator().manual_seed(1)).hash
    )
    for kill_at in (1, 3, 4, 5):
        state = fit(kill_at)[-1]
        checkpoint = load_checkpoint(tmp_path / "at", Checkpoint(state))
        assert fit(state=checkpoint.state)[-1].hash == whole[-1].hash


def test_a_fit_keeps_its_checkpoint_until_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = load("universal-gcg", steps=3, width=8, topk=8, slots=3, behaviors=1)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 0.0)
    model, whole = pocket("pocket-llama"), tmp_path / "whole"
    fitted = fit_attack(model, attack, train(), 0, [whole], Checkpoints(tmp_path / "other", 0.0))
    with monkeypatch.context() as patch:
        patch.setattr(artefacts, "save", killed)
        with pytest.raises(Killed):
            fit_attack(model, attack, train(), 0, [tmp_path / "out"], checkpoints)
    assert checkpoints.path(fitted.identity).is_file()
    again = fit_attack(model, attack, train(), 0, [tmp_path / "out"], checkpoints)
    assert again == fitted
    assert not list(checkpoints.folder.iterdir())


def killed(*_: object) -> None:
    raise Killed


def load_checkpoint(folder: Path, checkpoint: Checkpoint) -> Checkpoint:
    """As it comes back from a file."""
    checkpoints = Checkpoints(folder)
    checkpoints.keeper("key").save(checkpoint)
    found = checkpoints.load("key", torch.device("cpu"))
    assert found is not None
    return found


SHORT = "gcg:steps=4,width=8,slots=4"


def test_seconds_add_up(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(SHORT, tmp_path, kill_at=3)
    bench = bench_for(SHORT, tmp_path)
    saved = Resumable(bench, cell_for(SHORT, bench)).load()
    assert saved is not None and saved.tally.steps == 2
    resumed = run(SHORT, tmp_path)
    assert resumed.record.seconds.search > saved.seconds.search > 0
    assert resumed.record.seconds.verify > saved.seconds.verify > 0


def test_a_damaged_checkpoint_costs_no_more_than_itself(tmp_path: Path) -> None:
    whole = run(SHORT, tmp_path / "undisturbed")
    bench = bench_for(SHORT, tmp_path)
    key, checkpoints = cell_for(SHORT, bench).key, Checkpoints(tmp_path)
    with pytest.raises(Killed):
        run(SHORT, tmp_path, kill_at=4)
    path = checkpoints.path(key)
    data = path.read_bytes()
    assert checkpoints.load(key, bench.model.device) is not None
    for bad in [data[:-1], data[: len(data) // 2], data + b" ", b"{}"]:
        path.write_bytes(bad)
        assert checkpoints.load(key, bench.model.device) is None
    assert plain(run(SHORT, tmp_path).record) == plain(whole.record)
    # What a kill has left is put away, and damage is named.
    (tmp_path / ".abc.tmp").write_bytes(b"")
    path.write_bytes(data[:-1])
    (note,) = checkpoints.tidy(())
    assert str(path) in note and not list(tmp_path.glob("*.safetensors"))
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_damaged_at_any_byte_is_none(tmp_path: Path) -> None:
    data = encode(Checkpoint({"ids": torch.arange(5), "step": 3}, {"losses": [1.0, 0.5]}))
    checkpoints, cpu = Checkpoints(tmp_path), torch.device("cpu")
    path = checkpoints.path("key")
    path.write_bytes(data)
    assert checkpoints.load("key", cpu) is not None
    for at in range(len(data)):
        for bad in (data[:at], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]):
            path.write_bytes(bad)
            assert checkpoints.load("key", cpu) is None, at


def test_a_state_that_is_not_all_of_it_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a plugin with a faulty checkpoint is slower, and not wrong."""
    monkeypatch.setitem(ATTACKS.built_in, "forgetful", "test_going_on:Forgetful")
    spec = "forgetful:steps=5,width=8,slots=4"
    monkeypatch.setattr("test_going_on.artefact_of", lambda spec: Artefact())
    whole = run(spec, tmp_path / "undisturbed")
    with pytest.raises(Killed):
        run(spec, tmp_path / "killed", kill_at=4)
    resumed = run(spec, tmp_path / "killed")
    assert resumed.first == 1 and plain(resumed.record) == plain(whole.record)


class Forgetful(RandomSearch):
    """Keeps everything but its generator."""

    name = "forgetful"

    def run(self, *args: Any, state: State | None = None, **kwargs: Any) -> Iterator[Step]:
        fresh = {"generator": torch.Generator().get_state()}
        yield from super().run(*args, state={**state, **fresh} if state else None, **kwargs)
