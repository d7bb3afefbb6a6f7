"""One filling for several conversations: sums, stages, and the suffix as a string."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attacks import load
from attacks.attack import Behavior
from attacks.core.errors import BadInput
from attacks.core.objectives import TargetCrossEntropy
from attacks.core.search import CoordinateSearch
from attacks.core.search.moves import unit_rows
from attacks.core.search.universal import Joint, goals_for, search_universal
from conftest import pocket

REQUESTS = [
    Behavior(f"{verb}-{thing}", f"How do I {verb} the {thing}?", target=f"Sure, {verb} the {thing}")
    for verb, thing in (("mend", "harp"), ("paint", "kite"), ("polish", "organ"))
]


def goals(*names: str, requests: list[Behavior] = REQUESTS) -> Any:
    models = [pocket(name) for name in names]
    rng = torch.Generator().manual_seed(0)
    return [goals_for(models, request, TargetCrossEntropy(), 4, rng) for request in requests]


def test_losses_are_the_mean_and_gradients_the_sum_of_unit_ones() -> None:
    parts = [goal.losses for group in goals("pocket-llama", "pocket-llama-hard1") for goal in group]
    assert len(parts) == 6
    ids = parts[0].prompt.slot_ids
    joint = Joint(parts)
    alone = torch.stack([part.losses(ids.unsqueeze(0)) for part in parts])
    torch.testing.assert_close(joint.losses(ids.unsqueeze(0)), alone.mean(0))
    gradient, loss = joint.gradient(ids)
    expected = sum(unit_rows(part.gradient(ids)[0]) for part in parts)
    torch.testing.assert_close(gradient, expected)
    assert loss == pytest.approx(float(alone.mean()), rel=1e-4)


def test_every_candidate_survives_in_every_conversation() -> None:
    groups = goals("pocket-llama", "pocket-llama-hard1")
    search = CoordinateSearch(3, 16, 16, buffer=1, keep=1)
    for found in search_universal(groups, search, stage=1, rng=torch.Generator().manual_seed(1)):
        for goal in (goal for group in groups for goal in group):
            assert bool(goal.model.chat.survives(goal.prompt, found.ids.unsqueeze(0))[0])


def test_behaviours_are_taken_in_once_the_ones_before_are_matched_or_time_is_up() -> None:
    said = [
        pocket("pocket-llama").generate(
            [pocket("pocket-llama").conversation(r.text)], max_new_tokens=4
        )[0]
        for r in REQUESTS
    ]
    easy = [Behavior(r.id, r.text, target=answer) for r, answer in zip(REQUESTS, said, strict=True)]
    never = [Behavior(r.id, r.text, target="Zebra umbrella quartz") for r in REQUESTS]
    search = CoordinateSearch(5, 8, 8, buffer=1, keep=1)

    def active(requests: list[Behavior], stage: int) -> list[int]:
        rng = torch.Generator().manual_seed(1)
        groups = goals("pocket-llama", requests=requests)
        return [found.active for found in search_universal(groups, search, stage=stage, rng=rng)]

    assert active(easy, 0) == [1, 2, 3, 3, 3], "one step each, then all of them to the end"
    assert active(never, 0) == [1, 1, 1, 1, 1], "as published: stuck at the first"
    assert active(never, 2) == [1, 1, 2, 2, 3]


def test_the_suffix_goes_behind_every_request() -> None:
    model = pocket("pocket-llama")
    numbers: dict[str, Any] = {"steps": 4, "width": 16, "topk": 16, "slots": 4, "behaviors": 2}
    attack = load("universal-gcg", **numbers, stage=2)
    fitted = attack.prepare(model, REQUESTS, rng=torch.Generator().manual_seed(0))
    again = attack.prepare(model, REQUESTS, rng=torch.Generator().manual_seed(0))
    assert fitted.hash == again.hash
    suffix = fitted.data["suffix"]
    assert len(fitted.data["losses"]) == 4 and fitted.data["taken_in"] == 2
    assert fitted.data["flops"] > 0 and len(fitted.data["behaviors"]) == 2
    other = Behavior("other", "How do I tune the ferry?")
    (step,) = attack.run(model, other, artefact=fitted, rng=torch.Generator())
    assert step.prompts[0][-1].content == f"{other.text}{suffix}"
    on_trained = next(r for r in REQUESTS if r.id == fitted.data["behaviors"][0])
    ids, _ = model.chat.tokens(model.conversation(f"{on_trained.text}{suffix}"))
    found = fitted.tensors["suffix_ids"].tolist()
    windows = [ids[at : at + 4].tolist() for at in range(len(ids) - 3)]
    assert found in windows, "the string has the tokens that were searched"


def test_models_must_share_a_tokenizer() -> None:
    with pytest.raises(BadInput, match="different tokenizers"):
        goals("pocket-llama", "pocket-qwen2")
    with pytest.raises(BadInput, match="at least 1"):
        load("universal-gcg", behaviors=0)
