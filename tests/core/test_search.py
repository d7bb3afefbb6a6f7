"""The search core: gradients, candidates, the round-trip filter, checkpoints."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from attacks.core.artefact import EMPTY, Artefact
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.model import Model
from attacks.core.objectives import Objective, ProbeLoss, TargetCrossEntropy
from attacks.core.prompt import SLOT, Message, Prompt, conversation, suffixed
from attacks.core.search import CoordinateSearch, Evaluator
from attacks.core.search.buffer import Buffer
from attacks.core.search.candidates import swap, top_tokens, uniform_choices
from attacks.core.search.staged import CEILING, Staged
from attacks.core.sites import Site
from conftest import ALIGNED, SHIPPED, check_gradient, pocket, tiny


def probes(model: Model, layers: tuple[int, ...]) -> Artefact:
    rng = torch.Generator().manual_seed(3)
    weights = {f"weight.{at}": torch.randn(model.width, generator=rng) / 10 for at in layers}
    return Artefact(weights | {f"bias.{at}": torch.tensor(0.1) for at in layers})


def evaluator(
    model: Model, behavior: Behavior, objective: Objective, *, slots: int = 5, cache: bool = True
) -> Evaluator:
    rng = torch.Generator().manual_seed(1)
    prompt = model.prompt(suffixed(behavior, slots), target=behavior.target, rng=rng)
    layers = objective.layers if isinstance(objective, ProbeLoss) else (1, 2)
    bound = objective.bind(model, prompt, probes(model, layers))
    return Evaluator(model, prompt, bound, use_cache=cache)


def drawn(model: Model, prompt: Prompt, count: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(2)
    choices = uniform_choices(prompt.slot_ids, model.chat.allowed)
    return swap(prompt.slot_ids, choices, width=count, n_replace=2, rng=rng)


OBJECTIVES = [
    TargetCrossEntropy(),
    ProbeLoss((1, 2)),
    TargetCrossEntropy() + 0.5 * ProbeLoss((1, 2)),
]


@pytest.mark.parametrize("name", ALIGNED)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=["target", "probe", "sum"])
def test_gradient_equals_directional_finite_differences(
    name: str, objective: Objective, behavior: Behavior
) -> None:
    model = pocket(name, "float64")
    search = evaluator(model, behavior, objective)
    check_gradient(search, evaluator(model, behavior, objective, cache=False))


@pytest.mark.parametrize("name", ALIGNED)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=["target", "probe", "sum"])
def test_batched_losses_equal_single_uncached_ones(
    name: str, objective: Objective, behavior: Behavior
) -> None:
    model = pocket(name)
    search = evaluator(model, behavior, objective)
    candidates = drawn(model, search.prompt, 7)
    together = search.losses(candidates)
    plain = evaluator(model, behavior, objective, cache=False)
    alone = torch.cat([plain.losses(row.unsqueeze(0)) for row in candidates])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)
    search.batch_size = 3
    torch.testing.assert_close(search.losses(candidates), together, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ALIGNED)
def test_target_loss_is_that_of_plain_transformers(name: str, behavior: Behavior) -> None:
    model = pocket(name)
    search = evaluator(model, behavior, TargetCrossEntropy())
    candidates = drawn(model, search.prompt, 4)
    target = search.prompt.target_ids
    whole = torch.cat([search.prompt.fill(candidates), target.expand(4, -1)], dim=1)
    with torch.no_grad():
        logits = model.hf(input_ids=whole).logits
    start = len(search.prompt.ids) - 1
    expected = [cross_entropy(row[start : start + len(target)], target) for row in logits]
    torch.testing.assert_close(
        search.losses(candidates), torch.stack(expected), atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_survivors_are_exactly_those_whose_conversation_retokenises(
    name: str, behavior: Behavior
) -> None:
    """Rendered anew from messages by the tokenizer's own entry point."""
    model = pocket(name)
    prompt = model.prompt(suffixed(behavior, 6), target=None, rng=torch.Generator().manual_seed(0))
    candidates = drawn(model, prompt, 200)
    survives = model.chat.survives(prompt, candidates)
    assert 10 < int(survives.sum()) < 200
    for row, messages, kept in zip(
        prompt.fill(candidates), model.chat.messages(prompt, candidates), survives, strict=True
    ):
        turns = [message._asdict() for message in messages]
        anew = model.chat.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=False
        )
        assert (list(anew) == row.tolist()) == bool(kept)


def test_slots_stand_anywhere_in_the_conversation(rng: torch.Generator) -> None:
    model = pocket("pocket-llama")
    messages = (
        Message("system", f"Be kind.{SLOT * 2}"),
        Message("user", "Hello."),
        Message("assistant", "Hi."),
        Message("user", f"{SLOT}How do I paint{SLOT * 3} the harp?"),
    )
    prompt = model.prompt(messages, rng=rng)
    assert prompt.group_sizes == (2, 1, 3)
    candidates = drawn(model, prompt, 50)
    kept = candidates[model.chat.survives(prompt, candidates)]
    assert len(kept)
    for ids, filled in zip(kept, model.chat.messages(prompt, kept), strict=True):
        assert [turn.role for turn in filled] == ["system", "user", "assistant", "user"]
        assert torch.equal(model.chat.tokens(filled)[0], prompt.with_slots(ids).ids)
        assert not any(SLOT in turn.content for turn in filled)


def test_a_slot_after_the_read_position_is_refused(rng: torch.Generator) -> None:
    model = pocket("pocket-llama")
    prompt = model.prompt(conversation(f"Paint the harp.{SLOT * 2}"), rng=rng)

    bound = ProbeLoss((1,)).bind(model, prompt, probes(model, (1,)))
    early = replace(bound, sites=(Site(1, "resid_post", (3,)),))  # type: ignore[type-var]
    with pytest.raises(BadInput, match="causal"):
        Evaluator(model, prompt, early)


def test_a_target_that_is_empty_is_refused(rng: torch.Generator) -> None:
    with pytest.raises(BadInput, match="cannot be tokenised"):
        pocket("pocket-llama").prompt(conversation("Hello."), target="", rng=rng)


def test_reserved_character_in_a_behaviour_is_refused() -> None:
    with pytest.raises(BadInput, match="U\\+E000"):
        suffixed(Behavior("b", f"Hello{SLOT}"), 3)


def test_top_tokens_are_those_of_a_plain_sort(rng: torch.Generator) -> None:
    gradient = torch.randn((4, 30), generator=rng)
    allowed = torch.rand(30, generator=rng) > 0.3
    current = torch.tensor([1, 5, 7, 9])
    chosen = top_tokens(gradient, current, allowed, 6)
    for slot in range(4):
        ranked = sorted(range(30), key=lambda v: float(gradient[slot, v]))
        expected = [v for v in ranked if allowed[v] and v != current[slot]][:6]
        assert chosen[slot].tolist() == expected


@pytest.mark.parametrize("n_replace", [1, 2, 4])
def test_a_candidate_differs_in_at_most_the_slots_replaced(
    n_replace: int, rng: torch.Generator
) -> None:
    current = torch.tensor([3, 1, 4, 1])
    choices = torch.arange(10, 50).view(4, 10)
    candidates = swap(current, choices, width=300, n_replace=n_replace, rng=rng)
    changed = (candidates != current).sum(1)
    assert (changed == n_replace).all()
    for slot in range(4):
        assert set(candidates[:, slot].tolist()) <= {int(current[slot]), *choices[slot].tolist()}


def test_swaps_are_uniform_over_slots_and_tokens(rng: torch.Generator) -> None:
    current = torch.zeros(3, dtype=torch.int64)
    choices = torch.arange(1, 13).view(3, 4)
    candidates = swap(current, choices, width=24_000, n_replace=1, rng=rng)
    counts = torch.bincount(candidates.sum(1), minlength=13)[1:].double()
    chi_square = float(((counts - 2000) ** 2 / 2000).sum())
    assert chi_square < 31.3, "0.1 % point of chi-square with 11 degrees of freedom"


def test_the_buffer_keeps_the_best_distinct_candidates(rng: torch.Generator) -> None:
    ids = torch.randint(0, 3, (40, 2), generator=rng)
    losses = (ids * torch.tensor([3.0, 1.0])).sum(1)
    buffer = Buffer.empty(2, 4).add(ids[:20], losses[:20]).add(ids[20:], losses[20:])
    ranked = sorted({(float(x), tuple(row)) for x, row in zip(losses, ids.tolist(), strict=True)})
    assert [
        (float(x), tuple(r)) for x, r in zip(buffer.losses, buffer.ids.tolist(), strict=True)
    ] == (ranked[:4])


@pytest.mark.parametrize("buffer", [0, 3])
@pytest.mark.parametrize("gradient", [True, False])
def test_going_on_from_a_checkpoint_is_bit_identical(
    buffer: int, gradient: bool, behavior: Behavior
) -> None:
    model = pocket("pocket-llama")
    search = CoordinateSearch(6, 16, 8, buffer=buffer, use_gradient=gradient)

    def run(state=None):  # type: ignore[no-untyped-def]
        work = evaluator(model, behavior, TargetCrossEntropy())
        rng = torch.Generator().manual_seed(7)
        return list(search.run(model, work.prompt, work, rng=rng, state=state))

    whole = run()
    rest = run(whole[2].state)
    assert len(whole) == 6 and len(rest) == 3
    for one, other in zip(whole[3:], rest, strict=True):
        assert torch.equal(one.ids, other.ids) and torch.equal(one.losses, other.losses)
    assert [float(f.losses[0]) for f in run()] == [float(f.losses[0]) for f in whole]


def test_the_search_finds_the_optimum_that_enumeration_finds(behavior: Behavior) -> None:
    """One slot, few allowed ids: the best filling is known."""
    model = tiny("llama")
    few = model.chat.allowed.nonzero().squeeze(1)[40:70]
    allowed = torch.zeros_like(model.chat.allowed)
    allowed[few] = True
    own = Model(model.hf, model.chat.tokenizer, name="few")
    own.chat.__dict__["allowed"] = allowed
    work = evaluator(own, behavior, TargetCrossEntropy(), slots=1)
    fillings = few.unsqueeze(1)[own.chat.survives(work.prompt, few.unsqueeze(1))]
    losses = work.losses(fillings)
    search = CoordinateSearch(4, 400, 30, buffer=1)
    *_, found = search.run(own, work.prompt, work, rng=torch.Generator().manual_seed(0))
    assert float(found.losses[0]) == pytest.approx(float(losses.min()), abs=1e-6)
    assert found.ids[0].tolist() == fillings[losses.argmin()].tolist()


@pytest.mark.slow
def test_out_of_memory_halves_the_batch_and_changes_nothing(
    behavior: Behavior, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pocket("pocket-llama")
    work = evaluator(model, behavior, TargetCrossEntropy())
    candidates = drawn(model, work.prompt, 20)
    expected = work.losses(candidates)
    small = Evaluator.__dict__["_trace"]

    def hungry(self: Evaluator, inputs: torch.Tensor, *shared: Any) -> torch.Tensor:
        if len(inputs) > 6:
            raise RuntimeError("CUDA out of memory.")
        return small(self, inputs, *shared)  # type: ignore[no-any-return]

    monkeypatch.setattr(Evaluator, "_trace", hungry)
    torch.testing.assert_close(work.losses(candidates), expected, atol=2e-5, rtol=1e-4)
    assert work.batch_size == 4 or work.batch_size <= 6


def test_a_loss_that_is_not_a_number_is_an_error(behavior: Behavior) -> None:
    model = tiny("llama")
    work = evaluator(model, behavior, ProbeLoss((1,)))
    work.objective.bias.fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(FloatingPointError, match="NaN"):
        work.losses(work.prompt.slot_ids.unsqueeze(0))


def test_probe_loss_against_the_formula(behavior: Behavior) -> None:
    model = tiny("llama")
    layers = (0, 2)
    prompt = model.prompt(suffixed(behavior, 2), rng=torch.Generator().manual_seed(0))
    artefact = probes(model, layers)
    bound = ProbeLoss(layers).bind(model, prompt, artefact)
    states = {site: torch.randn(3, 1, model.width) for site in bound.reads}
    losses = bound(states)
    for row in range(3):
        expected = sum(
            -torch.log(
                torch.sigmoid(
                    states[site][row, 0] @ artefact.tensors[f"weight.{site.layer}"]
                    + artefact.tensors[f"bias.{site.layer}"]
                )
            )
            for site in bound.reads
        )
        assert float(losses[row]) == pytest.approx(float(expected), rel=1e-4)


def test_a_weighted_sum_is_the_sum_of_its_terms(behavior: Behavior) -> None:
    model = pocket("pocket-llama")
    candidates = drawn(model, evaluator(model, behavior, OBJECTIVES[0]).prompt, 3)
    parts = [evaluator(model, behavior, objective).losses(candidates) for objective in OBJECTIVES]
    torch.testing.assert_close(parts[2], parts[0] + 0.5 * parts[1], atol=2e-5, rtol=1e-4)


def test_stages_come_one_after_the_other(behavior: Behavior) -> None:
    """Against the two losses computed on their own."""
    model = pocket("pocket-llama")
    rng = torch.Generator().manual_seed(1)
    prompt = model.prompt(suffixed(behavior, 4), target=behavior.target, rng=rng)
    first, second = (
        Evaluator(model, prompt, objective.bind(model, prompt, probes(model, (1, 2))))
        for objective in (ProbeLoss((1, 2)), TargetCrossEntropy())
    )
    candidates = drawn(model, prompt, 12)
    probe, target = first.losses(candidates), second.losses(candidates)
    enough = float(probe.median())
    staged = Staged(first, second, enough)
    expected = torch.where(probe <= enough, target, CEILING + probe - enough)
    torch.testing.assert_close(staged.losses(candidates), expected, atol=2e-5, rtol=1e-4)
    passed, failed = candidates[probe.argmin()], candidates[probe.argmax()]
    torch.testing.assert_close(
        staged.gradient(passed)[0], first.gradient(passed)[0] + second.gradient(passed)[0]
    )
    torch.testing.assert_close(staged.gradient(failed)[0], first.gradient(failed)[0])


def test_what_is_needed_is_checked() -> None:
    for field, value in itertools.product(("steps", "width", "topk", "n_replace"), (0, -1)):
        numbers = {"steps": 1, "width": 1, "topk": 1, "n_replace": 1} | {field: value}
        with pytest.raises(BadInput, match=field):
            CoordinateSearch(**numbers)
    with pytest.raises(BadInput, match="target"):
        model = tiny("llama")
        prompt = model.plain("Hello.")
        TargetCrossEntropy().bind(model, prompt, EMPTY)
