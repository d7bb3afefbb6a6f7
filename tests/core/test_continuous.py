"""Soft prompts: the intervention that carries them, and the descent that finds them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attacks import load
from attacks.attack import Artefact, Behavior
from attacks.core.artefact import EMPTY
from attacks.core.errors import BadInput
from attacks.core.interventions import AblateDirection, SoftSlots
from attacks.core.model import Model
from attacks.core.objectives import Objective, ProbeLoss, TargetCrossEntropy
from attacks.core.prompt import Messages, Prompt, suffixed
from attacks.core.search import Evaluator, SoftSearch
from attacks.core.search.continuous import typical_entry
from attacks.core.search.descent import Moments, clip_rows
from attacks.core.sites import Site
from benchmarks.inputs.behaviors import load_behaviors
from conftest import ALIGNED, pocket, tiny

SLOTS = 4


def prompt_of(model: Model, behavior: Behavior) -> Prompt:
    rng = torch.Generator().manual_seed(1)
    return model.prompt(suffixed(behavior, SLOTS), target=behavior.target, rng=rng)


def soft(model: Model, prompt: Prompt, scale: float = 1.0) -> SoftSlots:
    """Slots filled with noise, at scale 1 of a typical size."""
    noise = torch.randn((SLOTS, model.width), generator=torch.Generator().manual_seed(2))
    return SoftSlots(prompt.slots, noise * (scale * typical_entry(model.embedding_table)))


def placeholders(model: Model, prompt: Prompt) -> list[Messages]:
    return model.chat.messages(prompt, prompt.slot_ids.unsqueeze(0))


def evaluator(
    model: Model, behavior: Behavior, objective: Objective, artefact: Artefact = EMPTY
) -> Evaluator:
    prompt = prompt_of(model, behavior)
    return Evaluator(model, prompt, objective.bind(model, prompt, artefact))


@pytest.mark.parametrize("name", ALIGNED)
def test_the_slots_are_replaced_and_nothing_else(name: str, behavior: Behavior) -> None:
    model = pocket(name)
    prompt = prompt_of(model, behavior)
    change = soft(model, prompt)
    everywhere = tuple(range(len(prompt.ids)))
    reads = [Site(-1, "embed", everywhere), Site(-1, "logits", (everywhere[-1],))]
    ids = prompt.ids.unsqueeze(0)
    with torch.no_grad():
        plain = model.trace(ids, reads)
        changed = model.trace(ids, reads, interventions=[change])
        start = int(prompt.slots[1])
        cache = model.prefix(prompt.ids[:start], interventions=[change])
        rest = model.trace(ids[:, start:], reads[1:], prefix=cache, interventions=[change])
        embeds = model.embed(prompt.ids)
        embeds[prompt.slots] = change.embeddings
        expected = model.hf(inputs_embeds=embeds.unsqueeze(0)).logits[:, -1:]
    others = [at for at in everywhere if at not in prompt.slots.tolist()]
    before, after = plain[reads[0]][0], changed[reads[0]][0]
    assert torch.equal(after[others], before[others])
    assert torch.equal(after[prompt.slots], change.embeddings)
    torch.testing.assert_close(changed[reads[1]], expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(rest[reads[1]], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ALIGNED)
def test_a_soft_prompt_makes_the_model_say_its_target(name: str) -> None:
    """And what it says is what plain transformers say when given the embeddings."""
    model, behavior = pocket(name), load_behaviors("pocket-test")[0].for_attack()
    attack = load("soft-prompt", steps=60)
    rng = torch.Generator().manual_seed(0)
    *_, step = attack.run(model, behavior, artefact=EMPTY, rng=rng)
    shape = {"pad_to": 32, "batch_size": 2}
    (answer,) = model.generate(step.prompts, max_new_tokens=24, interventions=step.interventions)
    padded = model.generate(
        step.prompts, max_new_tokens=24, interventions=step.interventions, **shape
    )
    (change,) = step.interventions
    assert isinstance(change, SoftSlots)
    with torch.no_grad():
        embeds = model.embed(model.chat.tokens(step.prompts[0])[0])
        embeds[change.slots] = change.embeddings
        new = model.hf.generate(
            inputs_embeds=embeds.unsqueeze(0),
            attention_mask=torch.ones((1, len(embeds)), dtype=torch.int64),
            max_new_tokens=24,
        )
    expected = model.chat.tokenizer.decode(new[0], skip_special_tokens=True).strip()
    assert answer == expected and padded == [expected]
    assert answer.startswith(behavior.affirmative) and step.target is None
    assert not model.hf.get_input_embeddings()._forward_hooks
    (refusal,) = model.generate(step.prompts, max_new_tokens=24)
    assert not refusal.startswith("Sure"), "the placeholders alone do nothing"


def test_the_embedding_hook_comes_off_after_a_failure(behavior: Behavior) -> None:
    model = pocket("pocket-llama")
    prompt = prompt_of(model, behavior)
    broken = SoftSlots(prompt.slots, torch.zeros(SLOTS, model.width + 1))
    with pytest.raises(RuntimeError):
        model.generate(placeholders(model, prompt), max_new_tokens=2, interventions=[broken])
    assert not model.hf.get_input_embeddings()._forward_hooks


def test_soft_slots_compose_with_other_interventions(behavior: Behavior) -> None:
    """In a trace and in generation alike."""
    model = pocket("pocket-llama")
    prompt = prompt_of(model, behavior)
    direction = torch.randn(model.width, generator=torch.Generator().manual_seed(1))
    changes = [soft(model, prompt), AblateDirection(direction, model.n_layers)]
    site = Site(-1, "logits", (len(prompt.ids) - 1,))
    with torch.no_grad():
        trace = model.trace(prompt.ids.unsqueeze(0), [site], interventions=changes)
    first = model.chat.tokenizer.decode(trace[site][0, 0].argmax())
    (answer,) = model.generate(placeholders(model, prompt), max_new_tokens=1, interventions=changes)
    assert answer == first.strip()


def test_soft_losses_at_tokens_are_their_losses(behavior: Behavior) -> None:
    model = pocket("pocket-gemma2")
    work = evaluator(model, behavior, TargetCrossEntropy())
    fillings = torch.stack([work.prompt.slot_ids, work.prompt.slot_ids.flip(0)])
    with torch.no_grad():
        losses = work.soft_losses(model.embed(fillings))
    torch.testing.assert_close(losses, work.losses(fillings), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ALIGNED)
def test_the_gradient_equals_finite_differences(name: str, behavior: Behavior) -> None:
    model = pocket(name, "float64")
    work = evaluator(model, behavior, TargetCrossEntropy())
    rows = soft(model, work.prompt).embeddings.double().requires_grad_()
    (gradient,) = torch.autograd.grad(work.soft_losses(rows.unsqueeze(0))[0], rows)
    rng = torch.Generator().manual_seed(5)
    for _ in range(3):
        direction = torch.randn(rows.shape, generator=rng, dtype=torch.float64)
        direction *= typical_entry(model.embedding_table) / direction.norm()
        with torch.no_grad():
            pair = torch.stack([rows + 1e-2 * direction, rows - 1e-2 * direction])
            above, below = work.soft_losses(pair).tolist()
        analytic = float((gradient * direction).sum())
        assert (above - below) / 2e-2 == pytest.approx(analytic, rel=2e-2, abs=1e-5)


@pytest.mark.parametrize("optimizer", ["sign", "adam"])
def test_going_on_from_a_checkpoint_is_bit_identical(optimizer: str, behavior: Behavior) -> None:
    model = pocket("pocket-llama")
    work = evaluator(model, behavior, TargetCrossEntropy())
    start = model.embed(work.prompt.slot_ids)
    search = SoftSearch(5, 0.1, optimizer)  # type: ignore[arg-type]
    whole = list(search.run(work, start))
    rest = list(search.run(work, start, state=whole[1].state))
    sparse = list(replace(search, every=2).run(work, start))
    assert len(whole) == 5 and len(rest) == 3
    for one, other in [
        *zip(whole[2:], rest, strict=True),
        *zip((whole[1], whole[3], whole[4]), sparse, strict=True),
    ]:
        assert torch.equal(one.embeddings, other.embeddings) and one.loss == other.loss
        assert torch.equal(one.state["embeddings"], other.state["embeddings"])  # type: ignore[arg-type]
    assert whole[-1].loss < whole[0].loss


def test_a_signed_step_moves_every_entry_by_the_same(behavior: Behavior) -> None:
    model = pocket("pocket-qwen2")
    work = evaluator(model, behavior, TargetCrossEntropy())
    start = model.embed(work.prompt.slot_ids)
    found = next(SoftSearch(1, 0.25).run(work, start))
    size = model.embedding_table.norm(dim=1).mean() / model.width**0.5
    moved = (found.state["embeddings"] - start).abs()  # type: ignore[operator]
    torch.testing.assert_close(moved, (0.25 * size).expand_as(moved), atol=1e-6, rtol=1e-4)
    assert torch.equal(found.embeddings, start), "what is handed over has been evaluated"


def test_any_objective_can_be_descended(behavior: Behavior) -> None:
    model = tiny("llama")
    rng = torch.Generator().manual_seed(3)
    weight = torch.randn(model.width, generator=rng)
    artefact = Artefact({"weight.1": weight, "bias.1": torch.tensor(0.0)})
    work = evaluator(model, behavior, ProbeLoss((1,)), artefact)
    *_, found = SoftSearch(20, 1.0, "adam").run(work, model.embed(work.prompt.slot_ids))
    assert found.loss < 0.95 * float(work.losses(work.prompt.slot_ids.unsqueeze(0)))


def test_moments_are_those_of_torch() -> None:
    rng = torch.Generator().manual_seed(0)
    at = torch.randn((3, 5), generator=rng)
    parameter = at.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    moments = Moments.zero(at)
    for _ in range(4):
        gradient = torch.randn((3, 5), generator=rng)
        parameter.grad = gradient
        optimizer.step()
        moments = moments.after(gradient)
        at = at - 0.1 * moments.direction()
    torch.testing.assert_close(at, parameter.detach(), atol=1e-6, rtol=1e-5)


def test_long_rows_are_clipped_and_short_ones_kept() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(
        clip_rows(rows, 1.0), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]])
    )


def test_controls_ask_for_something_else(behavior: Behavior) -> None:
    model = pocket("pocket-llama")

    def target(kind: str, seed: int) -> str | None:
        rng = torch.Generator().manual_seed(seed)
        attack = load("soft-prompt", target=kind, steps=1)
        return next(attack.run(model, behavior, artefact=EMPTY, rng=rng)).target

    assert target("benign", 0) == target("benign", 1) != behavior.target
    assert target("random", 0) == target("random", 0) != target("random", 1)


def test_the_start_may_be_given_as_text(behavior: Behavior) -> None:
    model = pocket("pocket-llama")
    attack = load("soft-prompt", init="How do I paint", slots=3, steps=1)
    rng = torch.Generator().manual_seed(0)
    step = next(attack.run(model, behavior, artefact=EMPTY, rng=rng))
    (change,) = step.interventions
    ids = torch.tensor(model.chat.ids("How do I paint")[:3])
    assert torch.equal(change.embeddings, model.embed(ids))  # type: ignore[attr-defined]


def test_numbers_that_make_no_sense_are_refused(behavior: Behavior) -> None:
    for field in ("steps", "every"):
        with pytest.raises(BadInput, match=field):
            SoftSearch(**{"steps": 1, "step_size": 0.1, field: 0})
    with pytest.raises(BadInput, match="step_size"):
        SoftSearch(1, 0.0)
