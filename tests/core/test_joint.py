"""What several searches get of a joint pass is what each gets of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from attacks.core.artefact import Artefact
from attacks.core.behavior import Behavior
from attacks.core.interventions import AddDirection, SuppressTokens
from attacks.core.model import JointModel, Model, ShieldedModel, refusal_to_join
from attacks.core.objectives import TargetCrossEntropy
from attacks.core.prompt import INSTRUCTION, suffixed
from attacks.core.search import Evaluator
from attacks.core.search.candidates import swap, uniform_choices
from attacks.core.sites import Site
from attacks.core.weights import Change, Orthogonalise
from benchmarks.harness.rounds import Rounds, Seat
from conftest import normal, pocket, tiny
from random_models import RECURRENT, random_model

#: Requests and targets of different lengths.
ROWS = (
    Behavior("a", "How do I paint the harp?", target="Sure, here is how:"),
    Behavior("b", "Tell me how to break the old harp in the hall of the king.", target="Sure"),
    Behavior("c", "Mend it.", target="Sure, here is how to mend the harp in a day or two:"),
)
MODELS: dict[str, Callable[[], Model]] = {
    "llama": lambda: pocket("pocket-llama", "float64"),
    "gemma2": lambda: pocket("pocket-gemma2", "float64"),
    "qwen2": lambda: pocket("pocket-qwen2", "float64"),
    "mixture": lambda: pocket("pocket-moe", "float64"),
    # Windows that end within the prompt, where a gap between positions would show.
    "windows": lambda: tiny("gemma2", sliding_window=6),
    "learned positions": lambda: tiny("gpt_neox"),
}


def together(model: Model, job: Callable[[Model, Behavior], Any]) -> list[tuple[Any, Any]]:
    """(what `job` gives, its work) for each of `ROWS`, run in rounds on views of `model`."""

    def seated(behavior: Behavior, seat: Seat[Any]) -> Any:
        view = JointModel(model, seat.ask)
        return job(view, behavior), view.meter.snapshot()

    rounds = Rounds(len(ROWS), model.synchronise)
    found = dict(rounds.run([partial(seated, row) for row in ROWS]))
    return [found[index] for index in range(len(ROWS))]


def alone(model: Model, job: Callable[[Model, Behavior], Any]) -> list[tuple[Any, Any]]:
    found = []
    for row in ROWS:
        before = model.meter.snapshot()
        result = job(model, row)
        found.append((result, model.meter.snapshot() - before))
    return found


def same(one: Any, other: Any, *, dtype: str) -> None:
    # Norms and losses are in float32 whatever the model's dtype.
    limits = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float64" else {"rtol": 2e-4, "atol": 2e-5}
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        torch.testing.assert_close(one, other, **limits)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            same(mine, theirs, dtype=dtype)
    else:
        assert one == other


def searching(
    model: Model, behavior: Behavior, *, changes: Sequence[Change] = (), cache: bool = True
) -> Any:
    """Gradient and losses of a few fillings, twice."""
    model, rng = model.changed(changes), Generator().manual_seed(0)
    prompt = model.prompt(suffixed(behavior, 5), target=behavior.affirmative, rng=rng)
    bound = TargetCrossEntropy().bind(model, prompt, Artefact())
    evaluator = Evaluator(model, prompt, bound, use_cache=cache)
    choices, found = uniform_choices(prompt.slot_ids, model.chat.allowed), []
    for width in (7, 3):
        candidates = swap(prompt.slot_ids, choices, width=width, n_replace=1, rng=rng)
        gradient, _ = evaluator.gradient(candidates[0])
        found += [gradient, evaluator.losses(candidates)]
    return found


@pytest.mark.parametrize("cache", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("name", MODELS)
def test_losses_gradients_and_work_are_those_of_a_search_alone(name: str, cache: bool) -> None:
    model = MODELS[name]()
    assert refusal_to_join(model) == ""
    job = partial(searching, cache=cache)
    same(together(model, job), alone(model, job), dtype=model.dtype)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_interventions_are_told_each_sequence_s_own_roles_and_steps(name: str) -> None:
    model = MODELS[name]()
    changes = (
        AddDirection(normal(model.width), 1, 0.5, roles=(INSTRUCTION,), spare=1),
        SuppressTokens(torch.arange(9), -3.0, steps=2),
    )
    job = partial(searching, changes=changes)
    changed = together(model, job)
    same(changed, alone(model, job), dtype=model.dtype)
    plain = alone(model, searching)
    assert all(not torch.equal(c[0][1], p[0][1]) for c, p in zip(changed, plain, strict=True))


def test_edits_of_weights_are_seen_by_their_own_search_only() -> None:
    model = MODELS["llama"]()

    def job(view: Model, behavior: Behavior) -> Any:
        edited = behavior is ROWS[1]
        edit = Orthogonalise(normal(model.width))
        return searching(view, behavior, changes=(edit,) if edited else ())

    same(together(model, job), alone(model, job), dtype=model.dtype)


def test_whatever_is_read_is_read_where_it_is() -> None:
    model = MODELS["llama"]()

    @torch.no_grad()
    def job(view: Model, behavior: Behavior) -> Any:
        prompt = view.plain(behavior.text)
        last = len(prompt.ids) - 1
        sites = [
            Site(0, "resid_pre", (last, 0)),
            Site(1, "mlp_post", (last - 1,)),
            Site(2, "z", (1, last)),
            Site(1, "pattern", (last,)),
            Site(-1, "logits", (last, last - 2)),
            Site(-1, "logits", (last - 1,)),
        ]
        first = view.trace(prompt.ids[None], sites)
        no_pattern = [site for site in sites if site.name != "pattern"]
        second, keys = view.extended(prompt.ids[None, :3], [Site(2, "resid_post", (1,))])
        _, more = view.extended(prompt.ids[None, 3:], no_pattern[:1], prefix=keys)
        return [*first.values(), *second.values(), more.length, *(k for k, _ in more.layers[:1])]

    same(together(model, job), alone(model, job), dtype=model.dtype)


@pytest.mark.parametrize("name", ["pocket-llama", "pocket-gemma2"])
def test_answers_are_those_given_alone(name: str) -> None:
    model = pocket(name)

    def job(view: Model, behavior: Behavior) -> list[str]:
        return view.generate([view.conversation(behavior.text)], max_new_tokens=12)

    same(together(model, job), alone(model, job), dtype=model.dtype)


def test_what_depends_on_padding_is_not_joined() -> None:
    model = random_model("llama")
    assert refusal_to_join(model) == ""
    rotary = model.hf.model.rotary_emb
    forward = rotary.forward
    rotary.forward = lambda x, position_ids: forward(x, position_ids[:1])
    assert "padding" in refusal_to_join(model)
    assert refusal_to_join(random_model("recurrent_gemma", **RECURRENT["recurrent_gemma"]))
    assert "checks" in refusal_to_join(ShieldedModel(pocket("pocket-llama")))
