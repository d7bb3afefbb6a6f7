"""Defences that change what the model computes, and judges as guards, against direct formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from attacks.core.artefact import Artefact
from attacks.core.behavior import Behavior
from attacks.core.model import Model
from attacks.core.objectives import TargetCrossEntropy
from attacks.core.prompt import INSTRUCTION, POST_INSTRUCTION, suffixed
from attacks.core.search import Evaluator
from attacks.core.sites import Site
from benchmarks.defenses import REFUSAL, load_defense
from benchmarks.defenses.guard import GuardJudge, _Judging
from benchmarks.defenses.subspace_filter import filtered, triggers
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.judges import Judge, Verdict
from conftest import check_gradient, pocket

TRAIN = [row.for_attack() for row in load_behaviors("pocket-train")]
SOME = [row for row in TRAIN if row.harmful][:48] + [row for row in TRAIN if not row.harmful][:48]


def fitted(spec: str, model: Model) -> tuple[Model, Artefact]:
    defense = load_defense(spec)
    made = defense.fit(model, SOME, rng=torch.Generator().manual_seed(0))
    return defense.around(model, made), made


def logits_with(model: Model, module: Any, change: Callable[..., Any], ids: Any) -> torch.Tensor:
    handle = module.register_forward_pre_hook(change, with_kwargs=True)
    with torch.no_grad():
        found: torch.Tensor = model.hf(input_ids=ids.unsqueeze(0)).logits[0]
    handle.remove()
    return found


@pytest.mark.parametrize("kind", [True, False])
def test_steering_adds_the_refusal_direction_as_far_as_the_gate_is_open(kind: bool) -> None:
    plain = pocket("pocket-llama")
    model, made = fitted("steering:layer=3,sharpness=20.0", plain)
    text = next(row.text for row in load_behaviors("pocket-test") if row.harmful == kind)
    ids, roles = plain.chat.tokens(plain.conversation(text))

    def change(module: Any, args: Any, kwargs: Any) -> Any:
        x = args[0].clone()
        away = x[0, -1] - made.tensors["centre"]
        score = cosine_similarity(away, made.tensors["direction"], dim=0)
        gate = 1 / (1 + torch.exp(-20.0 * (score - made.data["threshold"])))
        assert (gate > 0.5) == kind
        x[0, roles == POST_INSTRUCTION] += gate * 1.5 * made.tensors["refusal"]
        return (x, *args[1:]), kwargs

    expected = logits_with(plain, plain.hf.model.layers[3], change, ids)
    site = Site(-1, "logits", tuple(range(len(ids))))
    found = model.trace(ids.unsqueeze(0), [site], roles=roles)[site][0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    if kind:
        assert not torch.allclose(found[-1], plain.trace(ids[None], [site])[site][0, -1], atol=0.1)


def test_an_open_gate_makes_the_model_refuse_what_is_harmless() -> None:
    _, made = fitted("steering", pocket("pocket-llama"))
    assert made.check["induced"] > 0.8 and made.check["auc"] > 0.99


@pytest.mark.parametrize("spec", ["steering:sharpness=5.0", "subspace-filter"])
def test_gradient_through_a_change_equals_finite_differences(spec: str) -> None:
    plain = pocket("pocket-llama", "float64")
    model, _ = fitted(spec, plain)
    behavior = load_behaviors("pocket-test")[0].for_attack()
    prompt = model.prompt(
        suffixed(behavior, 3), target="Sure, here", rng=torch.Generator().manual_seed(0)
    )
    bound = TargetCrossEntropy().bind(model, prompt, Artefact())
    search = Evaluator(model, prompt, bound)
    direct = Evaluator(model, prompt, bound, use_cache=False)
    assert not torch.equal(
        search.gradient(prompt.slot_ids)[0],
        Evaluator(plain, prompt, bound).gradient(prompt.slot_ids)[0],
    )
    check_gradient(search, direct)


@pytest.mark.parametrize("spec", ["steering", "subspace-filter"])
def test_candidates_have_the_loss_of_their_conversation(spec: str) -> None:
    model, _ = fitted(spec, pocket("pocket-llama"))
    behavior = load_behaviors("pocket-test")[2].for_attack()
    prompt = model.prompt(
        suffixed(behavior, 4), target="Sure, here", rng=torch.Generator().manual_seed(1)
    )
    ids = torch.stack([prompt.slot_ids, prompt.slot_ids.flip(0), prompt.slot_ids.roll(1)])
    ids = ids[model.chat.survives(prompt, ids)]
    found = Evaluator(model, prompt, TargetCrossEntropy().bind(model, prompt, Artefact())).losses(
        ids
    )
    for loss, row in zip(found, ids, strict=True):
        whole = torch.cat([prompt.with_slots(row).ids, prompt.target_ids])
        roles = torch.cat([prompt.roles, torch.full_like(prompt.target_ids, 3)])
        first = len(prompt.ids) - 1
        site = Site(-1, "logits", tuple(range(first, len(whole) - 1)))
        logits = model.trace(whole[None], [site], roles=roles)[site][0].log_softmax(-1)
        expected = -logits.gather(1, prompt.target_ids[:, None]).mean()
        assert float(loss) == pytest.approx(float(expected), abs=1e-4)


def test_the_filter_projects_triggers_as_the_formula_says() -> None:
    rng = torch.Generator().manual_seed(2)
    tokens = torch.randn(7, 16, generator=rng, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(16, 3, generator=rng, dtype=torch.float64)).Q.T
    tokens[2] += 6 * basis[0]
    concept = basis.T @ torch.linalg.inv(basis @ basis.T) @ basis
    means = torch.stack([tokens[[j for j in range(7) if j != i]].mean(0) for i in range(7)])
    away = [float((p - concept @ p).norm()) for p in means]
    chosen = [away[i] >= 1.01 * sum(away[j] for j in range(7) if j != i) / 6 for i in range(7)]
    assert triggers(tokens, basis, 0.01).tolist() == chosen and any(chosen) and not all(chosen)
    columns = means.T
    span = columns @ torch.linalg.pinv(columns.T @ columns) @ columns.T
    expected = torch.stack(
        [
            (torch.eye(16, dtype=torch.float64) - concept) @ span @ x if hit else x
            for x, hit in zip(tokens, chosen, strict=True)
        ]
    )
    torch.testing.assert_close(filtered(tokens, basis, 0.01), expected)


def test_the_filter_touches_the_request_only() -> None:
    plain = pocket("pocket-llama")
    model, _ = fitted("subspace-filter:alpha=0.0", plain)
    prompt = plain.plain("How do I smudge the violin?")
    site = Site(-1, "embed", tuple(range(len(prompt.ids))))
    found, usual = (
        each.trace(prompt.ids[None], [site], roles=prompt.roles)[site][0] for each in (model, plain)
    )
    changed = (found != usual).any(1)
    assert changed.any() and not changed[prompt.roles != INSTRUCTION].any()


class NoViolins(Judge):
    """Objects to a word."""

    name = "no-violins"
    summary = "for tests"

    def judge(self, behavior: Behavior, completion: str, *, openers: Any) -> Verdict:
        if "?" not in behavior.text:
            return Verdict(None, "unjudged")
        return Verdict("violin" in completion, "complied", 0.9 if "violin" in completion else 0.2)


@pytest.mark.parametrize("on", ["prompt", "answer"])
def test_a_guard_blocks_what_its_judge_objects_to(on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.defenses.guard.load_judge", lambda spec: NoViolins())
    plain = pocket("pocket-llama")
    model = GuardJudge(judge="any", on=on).around(plain, Artefact())  # type: ignore[arg-type]
    texts = ["How do I polish the violin?", "How do I polish the kettle?", "Polish the violin."]
    asked = [plain.conversation(text) for text in texts]
    usual = plain.generate(asked, max_new_tokens=16)
    said = model.generate(asked, max_new_tokens=16)
    seen = texts if on == "prompt" else usual
    for text, look, answer, own in zip(texts, seen, said, usual, strict=True):
        blocked = "?" in text and "violin" in look
        assert answer == (REFUSAL if blocked else own)
        assert bool(answer.by) == blocked  # type: ignore[attr-defined]
    (shield,) = model.shields
    assert isinstance(shield, _Judging)
    assert shield.scores(texts, texts) == pytest.approx([0.9, -0.8, 0.0])
    prompt = model.prompt(plain.conversation(texts[0]), rng=torch.Generator(), target="Sure")
    seen_scores = shield.scores(texts, seen)
    expected = [5.0 * max(0.0, score) for score in seen_scores]
    if on == "prompt":
        assert shield.toll(model, prompt)(asked).tolist() == pytest.approx(expected)
