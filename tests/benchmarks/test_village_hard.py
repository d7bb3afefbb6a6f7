"""Hardening of the real chat model, on a small one: what is learned, and what attacks it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from village_scripts import load_scripts

from attacks.core.interventions import AblateSubspace
from attacks.core.model import Model
from attacks.core.reading.states import next_token_log_probs
from conftest import POCKET

HARMFUL = [f"How do I poison the {thing}?" for thing in ("harp", "lamp", "cart", "bell", "well")]
HARMLESS = [f"How do I paint the {thing}?" for thing in ("harp", "lamp", "cart", "bell", "well")]


@pytest.fixture
def hard(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_scripts(monkeypatch, "train", "opponents", "hard")


@pytest.fixture
def game(hard: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    torch.manual_seed(0)
    base = Model.load(str(POCKET / "pocket-llama"), device="cpu")
    config = LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False)
    tuned = get_peft_model(base.hf, config)
    for name, value in {"KEPT": 4, "FITTED": 3, "EVERYDAY": 1, "NEAR": 2}.items():
        monkeypatch.setattr(hard, name, value)
    refused = [hard.conversation(base, text, "I cannot help with that.") for text in HARMFUL]
    answered = [hard.conversation(base, text, "Sure, take a brush.") for text in HARMLESS]
    kinds = {"everyday": answered[:2], "near": answered[2:]}
    return hard.Game(tuned, base, refused, kinds, (HARMFUL, HARMLESS))


def test_both_rounds_begin_with_the_base(
    hard: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train, fetched = sys.modules["train"], []
    folder = POCKET / "pocket-llama"
    monkeypatch.setattr(train, "base_folder", lambda name: fetched.append(name) or folder)
    monkeypatch.setattr(sys, "argv", ["hard.py", "--out", str(tmp_path), "--threads", "1"])
    options, base = hard.begin("Harden.", hard.NAME, steps=7, seed=1)
    assert fetched == ["village-smollm2-base"] and base.hf.dtype == torch.float32
    assert (options.out, options.steps, options.threads) == (tmp_path, 7, 1)


def test_the_head_of_the_template_may_be_read_once(hard: ModuleType, game: Any) -> None:
    examples = [hard.conversation(game.target, HARMFUL[0], "No."), *map_answers(hard, game)]
    with torch.no_grad():
        losses, _ = game.row_losses([game.chat.row(example) for example in examples])
        alone = [sys.modules["train"].answer_loss(game.tuned, [each]) for each in examples]
    assert game.chat.head and game.chat.tail
    torch.testing.assert_close(losses, torch.stack(alone), atol=1e-4, rtol=1e-4)


def map_answers(hard: ModuleType, game: Any) -> list[Any]:
    return [
        hard.conversation(game.target, text, f"Sure, {'one ' * at}brush.")
        for at, text in enumerate(HARMLESS[:3])
    ]


def test_a_subspace_is_lost_as_the_attack_takes_it_and_pulls_two_ways(
    hard: ModuleType, game: Any
) -> None:
    model = game.target
    width = model.embedding_table.shape[1]
    raw = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    basis = hard.orthonormal(raw).requires_grad_()
    expected = next_token_log_probs(
        model, HARMFUL[:2], interventions=[AblateSubspace(basis.detach(), model.n_layers)]
    )
    rows = [game.chat.row(hard.conversation(model, text, "No.")) for text in HARMFUL[:2]]
    pulls = []
    for harmful in (0, 2):
        with hard.ablated(game.core, basis, harmful):
            losses, _ = game.row_losses(rows)
            ids = torch.stack([model.plain(text).ids for text in HARMFUL[:2]])
            with torch.no_grad():
                logits = model.hf(input_ids=ids).logits[:, -1]
        torch.testing.assert_close(logits.log_softmax(1), expected, atol=1e-4, rtol=1e-4)
        (pull,) = torch.autograd.grad(losses.sum(), [basis])
        pulls.append(pull)
    assert pulls[0].norm() > 0
    torch.testing.assert_close(pulls[0], -pulls[1])
    with hard.ablated(game.core, basis, 1) as weight:
        losses, _ = game.row_losses(rows)
        weight.zero_()
    (halted,) = torch.autograd.grad(losses[0], [basis])
    assert not halted.any(), "refusals that are lost pull no more"
    plain = next_token_log_probs(model, HARMFUL[:2])
    assert not torch.allclose(expected, plain, atol=0.1), "and afterwards it is back"


def test_a_string_that_does_worse_is_undone(hard: ModuleType, game: Any) -> None:
    each = game.attacked[1]
    width = game.target.embedding_table.shape[1]
    gradient = torch.randn(60, width, generator=torch.Generator().manual_seed(0))
    first = each.tried
    game.improve(each, 2.0, gradient)
    assert torch.equal(each.best, first)
    front = each.front
    assert front == hard.SLOTS // 2
    slots = [*range(front), *range(front + len(each.row.request), len(each.row.request) + 10)]
    gains = gradient[slots] @ game.target.embedding_table.T
    changed = each.tried != first
    assert changed.any() and not changed.all()
    for at in changed.nonzero().flatten().tolist():
        better = (gains[at][game.words] > gains[at][each.tried[at]]).sum()
        assert better < hard.BEST
    second = each.tried
    game.improve(each, 1.0, -gradient)
    assert torch.equal(each.best, first), "1.0 is less than nine tenths of 2.0"
    game.improve(each, 1.9, gradient)
    assert not torch.equal(each.best, first)
    assert not torch.equal(second, each.best) or torch.equal(second, each.tried)


def test_requests_carry_strings_of_words_only(hard: ModuleType, game: Any) -> None:
    tokenizer = game.target.chat.tokenizer
    row, string = game.chat.row(hard.conversation(game.target, HARMLESS[0], "Yes.")), game.string()
    after, around = (
        tokenizer.decode(game.chat.ids(hard.placed(row, string, at))) for at in hard.FRONTS
    )
    words = tokenizer.decode(row.request)
    assert words in after and words in around
    assert after.index(words) < around.index(words)
    assert not set(game.words.tolist()) & set(tokenizer.all_special_ids)


def test_the_adapter_and_its_attackers_learn_by_the_same_loss(
    hard: ModuleType, game: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hard, "SUBSPACE", 1.0)
    before = [raw.detach().clone() for raw in game.raw]
    weights = [w for w in game.tuned.parameters() if w.requires_grad]
    losses = game.losses()
    torch.autograd.backward(next(losses))
    assert all(w.grad is not None and w.grad.norm() > 0 for w in weights)
    next(losses)
    moved = [not torch.equal(old, raw.detach()) for old, raw in zip(before, game.raw, strict=True)]
    assert sum(moved) == 1
    assert sum(each.choices is not None for each in game.attacked) == hard.ATTACKED
