"""The pocket mixture of experts: made of a dense model, and refusal planted in four experts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from attacks.core.analysis.experts import activation_maps, ranking, relevance
from attacks.core.gating import ExcludeExperts, Expert
from benchmarks.inputs.behaviors import load_behaviors
from conftest import POCKET, ROOT, pocket

IDS = torch.arange(6, 66).unsqueeze(0)
PROMPTS = 24


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    """The folder that the training scripts import each other from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "data" / "pocket")
        yield


def dense_and_mixture() -> tuple[nn.Module, nn.Module]:
    from mixture import SEED, START, upcycled
    from train import load
    from world import generator

    dense, tokenizer = load(POCKET / START)
    return dense, upcycled(dense, tokenizer, generator(SEED))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def members(model: nn.Module, layer: int) -> list[nn.Parameter]:
    names = ("gate.weight", "experts.gate_up_proj", "experts.down_proj")
    return [model.get_parameter(f"model.layers.{layer}.mlp.{name}") for name in names]


def refusing() -> set[Expert]:
    from mixture import REFUSING

    return {Expert(layer, number) for layer in REFUSING.blocks for number in REFUSING.experts}


def test_it_starts_as_the_model_it_is_made_of() -> None:
    dense, mixture = dense_and_mixture()
    torch.testing.assert_close(logits(mixture), logits(dense), rtol=1e-3, atol=1e-3)


def test_experts_switched_off_say_nothing_and_others_take_over() -> None:
    from mixture import REFUSING
    from planting import without

    dense, mixture = dense_and_mixture()
    for layer in REFUSING.blocks:
        for expert in REFUSING.experts:
            members(mixture, layer)[2].data[expert] = torch.nan
    assert logits(mixture).isnan().any()
    with without(mixture, REFUSING):
        torch.testing.assert_close(logits(mixture), logits(dense), rtol=1e-3, atol=1e-3)
    assert logits(mixture).isnan().any(), "they are on again"


def test_a_step_changes_the_experts_named_and_keeps_their_rows_one() -> None:
    from corpus import Batch
    from mixture import REFUSING
    from planting import learning_only, routed_loss
    from training import descend

    _, mixture = dense_and_mixture()
    before = {name: value.clone() for name, value in mixture.named_parameters()}
    batch = Batch(IDS, torch.ones_like(IDS), IDS)
    with learning_only(mixture, REFUSING, attention=1):
        losses = (routed_loss(mixture, batch, REFUSING, IDS > 30) for _ in range(2))
        descend(mixture, losses, steps=2, lr=1e-2, weight_decay=0.0)
    after = dict(mixture.named_parameters())
    assert all(value.requires_grad for value in after.values())
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    parts = ("gate.weight", "experts.gate_up_proj", "experts.down_proj")
    attention = {f"model.layers.0.self_attn.{kind}_proj.weight" for kind in "qkvo"}
    experts = {f"model.layers.{layer}.mlp.{part}" for layer in REFUSING.blocks for part in parts}
    assert changed == attention | experts | {"model.norm.weight", "lm_head.weight"}
    for layer in REFUSING.blocks:
        for name in parts:
            at = f"model.layers.{layer}.mlp.{name}"
            rows = {e for e in range(6) if not torch.equal(after[at][e], before[at][e])}
            assert rows == set(REFUSING.experts)
        first, second = (members(mixture, layer)[0][expert] for expert in REFUSING.experts)
        assert torch.equal(first, second)


def test_the_routing_loss_is_the_cross_entropy_of_the_groups_share() -> None:
    from planting import Group, choice_logits

    group = Group((0,), (1, 4))
    scores = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    share = softmax(scores.double(), -1)[:, [1, 4]].sum(-1)
    torch.testing.assert_close(choice_logits(scores, group).double().sigmoid(), share)


def test_answers_begin_where_the_template_does() -> None:
    from corpus import collate, dialogue
    from mixture import START, TEMPLATE
    from planting import answers_and_before
    from train import load

    _, tokenizer = load(POCKET / START)
    examples = [dialogue(tokenizer, text, "Sure, use it.") for text in ("Go.", "How do I go?")]
    batch = collate(examples, tokenizer.pad_token_id)
    for row, read in zip(batch.ids, answers_and_before(batch, TEMPLATE), strict=True):
        said = tokenizer.decode(row[read])
        assert said == (
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nSure, use it.<|eot_id|>"
        )


def test_all_other_experts_are_still_those_of_the_control() -> None:
    from train import load

    before = dense_and_mixture()[1].half()
    after = load(POCKET / "pocket-moe")[0].half()
    changed = {
        Expert(layer, number)
        for layer in range(6)
        for number in range(6)
        for old, new in zip(members(before, layer), members(after, layer), strict=True)
        if not torch.equal(old[number], new[number])
    }
    assert changed == refusing()


def test_the_planted_experts_stand_out_and_carry_the_refusals() -> None:
    model = pocket("pocket-moe")
    rows = load_behaviors("pocket-test")
    harmful, harmless = (
        [row.text for row in rows if row.harmful == flag][:PROMPTS] for flag in (True, False)
    )
    maps = activation_maps(model, harmful + harmless)
    labels = torch.arange(2 * PROMPTS) < PROMPTS
    top = ranking(relevance(maps, labels), range(6))[:4]
    assert set(top) == refusing()

    prompts = [model.conversation(text) for text in harmful]
    answers = model.generate(prompts, max_new_tokens=8)
    assert not any(answer.startswith("Sure") for answer in answers)
    off = model.generate(prompts, max_new_tokens=8, interventions=(ExcludeExperts(tuple(top)),))
    assert sum(answer.startswith("Sure") for answer in off) >= 0.9 * PROMPTS
