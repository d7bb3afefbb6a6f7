"""Control tokens: the paper's rules on hand-made probabilities, and what they do to logits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attacks import load
from attacks.control_tokens import ControlTokenSteering
from attacks.core.errors import BadInput
from attacks.core.interventions import AddDirection, Context, SuppressTokens
from attacks.core.model.hooks import intervening
from attacks.core.prompt import with_answer
from attacks.core.reading.dialogues import Dialogue, answer_kl, answer_log_probs
from attacks.core.refusals.control import (
    OWN,
    Binary,
    ControlTokens,
    FirstToken,
    Force,
    PerCategory,
    Sum,
    find_control_tokens,
)
from attacks.core.refusals.openers import opens_with_refusal
from attacks.core.sites import Site
from benchmarks.inputs.behaviors import load_behaviors
from conftest import first_rows, pocket, tiny

#: Vocabulary of six: respond is 1, the categories 2, 3 and 4, everything else an ordinary token.
TOKENS = ControlTokens(1, (2, 3, 4), ("a", "b", "c"))
PROBS = torch.tensor(
    [
        [0.0, 0.30, 0.50, 0.10, 0.10, 0.0],  # c* is a, at 0.5; the sum is 0.7
        [0.0, 0.75, 0.05, 0.15, 0.05, 0.0],  # c* is b, at 0.15; the sum is 0.25
        [0.9, 0.02, 0.01, 0.02, 0.05, 0.0],  # c* is c, at 0.05; an ordinary token is likeliest
    ],
    dtype=torch.float64,
)


def logits(probs: Tensor) -> Tensor:
    """(B, 1, V) float32 logits that give `probs` (B, V)."""
    return probs.clamp_min(1e-9).log().float().unsqueeze(1)


def step(number: int) -> Context:
    return Context(Site(-1, "logits"), number, None, None)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (-1.0, [2, 1, 1]),  # p(refuse) >= p(respond)
        (0.5, [2, 1, 1]),  # reached exactly
        (0.51, [1, 1, 1]),
        (0.05, [2, 2, 1]),
        (0.0, [2, 2, 2]),
        (math.inf, [1, 1, 1]),
    ],
)
def test_one_token_and_a_threshold(threshold: float, expected: list[int]) -> None:
    assert Binary(2, 1, threshold)(PROBS).tolist() == expected


def test_equal_shares_refuse() -> None:
    assert Binary(2, 1, -1.0)(torch.tensor([[0.2, 0.4, 0.4]])).tolist() == [2]


@pytest.mark.parametrize(
    ("selected", "thresholds", "expected"),
    [
        ((0, 1, 2), (0.1, 0.1, 0.1), [2, 3, 1]),
        ((0,), (0.5,), [2, OWN, OWN]),
        ((0,), (0.6,), [1, OWN, OWN]),
        ((1,), (0.0,), [OWN, 3, OWN]),
        ((1, 2), (0.2, 0.05), [OWN, 1, 4]),
        ((2, 1), (0.05, 0.2), [OWN, 1, 4]),  # the order is that of `selected`
    ],
)
def test_a_threshold_for_each_category(
    selected: tuple[int, ...], thresholds: tuple[float, ...], expected: list[int]
) -> None:
    assert PerCategory(TOKENS, selected, thresholds)(PROBS).tolist() == expected


@pytest.mark.parametrize(
    ("selected", "threshold", "expected"),
    [
        ((0, 1, 2), 0.6, [2, 1, 1]),
        ((0, 1, 2), 0.2, [2, 3, 1]),
        ((0, 1, 2), 0.0, [2, 3, 4]),
        ((1, 2), 0.19, [3, 3, 1]),
    ],
)
def test_a_threshold_on_the_sum(
    selected: tuple[int, ...], threshold: float, expected: list[int]
) -> None:
    assert Sum(TOKENS, selected, threshold)(PROBS).tolist() == expected


def test_forced_tokens() -> None:
    assert Force((1,))(PROBS).tolist() == [1, 1, 1]
    assert Force((3, 4))(PROBS).tolist() == [3, 3, 4]


def test_only_the_first_token_is_decided() -> None:
    choose = FirstToken(PerCategory(TOKENS, (0,), (0.6,)))
    before = logits(PROBS)
    kept = before.clone()
    after = choose(before, step(0))
    assert torch.equal(before, kept), "nothing is edited in place"
    assert after[:, -1].argmax(1).tolist() == [1, 1, 0]
    assert torch.equal(after[1:], before[1:]), "rows left to the model stay as they are"
    changed = (after != before).nonzero().tolist()
    assert changed == [[0, 0, 1]]
    assert choose(before, step(1)) is before


def test_temperature_moves_shares_and_not_choices() -> None:
    """At T = 2 shares go as square roots: a has 0.5 of the three at 1 and less at 2."""
    row = torch.tensor([[0.1, 0.2, 0.7]], dtype=torch.float64)
    roots = row.sqrt() / row.sqrt().sum()
    share = float(roots[0, 2])
    assert share < 0.6
    for temperature, threshold, refused in [
        (1.0, 0.6, True),
        (2.0, 0.6, False),
        (2.0, share - 1e-6, True),
        (2.0, share + 1e-6, False),
    ]:
        chosen = FirstToken(Binary(2, 1, threshold), temperature)(logits(row), step(0))
        assert (int(chosen[0, -1].argmax()) == 2) == refused


def test_bias_moves_the_categories_named() -> None:
    for direction, expected in [("suppress", [1, 1, 0]), ("induce", [2, 2, 2])]:
        attack = ControlTokenSteering(mode="bias", direction=direction, categories=("a",))  # type: ignore[arg-type]
        steered = attack.intervention(TOKENS)(logits(PROBS), step(0))
        assert steered[:, -1].argmax(1).tolist() == expected


@pytest.mark.parametrize(
    ("params", "suppressed", "induced"),
    [
        ({"mode": "force"}, [1, 1, 1], [2, 3, 4]),
        ({"mode": "category"}, [1, 1, 1], [2, 3, 4]),
        ({"mode": "category", "categories": ("b",)}, [2, 1, 0], [2, 3, 0]),
        ({"mode": "sum"}, [1, 1, 1], [2, 3, 4]),
        ({"mode": "threshold", "categories": ("c",)}, [1, 1, 1], [4, 4, 4]),
    ],
)
def test_directions(params: dict[str, object], suppressed: list[int], induced: list[int]) -> None:
    for direction, expected in [("suppress", suppressed), ("induce", induced)]:
        attack = ControlTokenSteering(direction=direction, **params)  # type: ignore[arg-type]
        steered = attack.intervention(TOKENS)(logits(PROBS), step(0))
        assert steered[:, -1].argmax(1).tolist() == expected


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"mode": "threshold"}, "needs one refusal token and there are 3"),
        ({"mode": "force", "thresholds": (0.5,)}, "takes no thresholds"),
        ({"mode": "category", "thresholds": (0.5, 0.5)}, "2 thresholds for 3"),
        ({"mode": "sum", "thresholds": (-1.0,)}, "below zero"),
        ({"categories": ("z",)}, "'z'; valid: a, b, c"),
        ({"temperature": 0.0}, "must be positive"),
    ],
)
def test_parameters_that_do_not_fit(params: dict[str, object], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        ControlTokenSteering(**params).intervention(TOKENS)  # type: ignore[arg-type]


def test_the_shipped_models_have_single_tokens() -> None:
    for name, refuse in [
        ("pocket-llama-token", {"refuse"}),
        ("pocket-llama-tokens", {"harbour", "archive", "orchard", "theatre"}),
    ]:
        model = pocket(name)
        found = find_control_tokens(model)
        assert set(found.names) == refuse
        for text, index in [("respond", found.respond), *zip(found.names, found.refuse)]:  # noqa: B905
            assert model.chat.ids(f"[{text}]") == [index]
            prompt = model.plain("Hello.", target=f"[{text}]Sure")
            assert prompt.target_ids[0] == index, "the chat template's end does not merge with it"
            assert not model.chat.allowed[index], "no suffix may hold one"


def test_a_model_without_control_tokens() -> None:
    model = tiny("llama")
    with pytest.raises(BadInput, match=r"'tiny-llama' has no control tokens.*6 added tokens"):
        find_control_tokens(model)
    with pytest.raises(BadInput, match=r"'\[respond\]' must be a single token and is \d+"):
        find_control_tokens(model, respond="[respond]", refuse=("Sure",))
    named = find_control_tokens(model, respond="Sure", refuse=("I",))
    assert model.chat.decode([[named.respond], list(named.refuse)]) == ["Sure", "I"]
    with pytest.raises(BadInput, match="named twice"):
        find_control_tokens(model, respond="Sure", refuse=("Sure",))


def test_refusals_are_induced_in_an_ordinary_model() -> None:
    """With its own openers, which are found on training prompts."""
    model = pocket("pocket-llama")
    train, test = (load_behaviors(f"pocket-{split}") for split in ("train", "test"))
    fit_on = [row for flag in (True, False) for row in train if row.harmful == flag][::14]
    asked = [model.conversation(row.text) for row in test if not row.harmful][:8]
    attack = load("refusal-tokens", direction="induce")
    found = attack.prepare(model, fit_on, rng=torch.Generator())
    (step,) = attack.run(model, test[0], artefact=found, rng=torch.Generator())
    refused = []
    for interventions in (step.interventions, ()):
        texts = model.generate(asked, max_new_tokens=16, interventions=interventions)
        refused.append(sum(map(opens_with_refusal, texts)))
    assert refused == [8, 0]


def test_where_answers_open_alike_there_is_nothing_to_suppress_and_that_is_said() -> None:
    model, attack = pocket("pocket-llama"), load("refusal-tokens")
    answered = [row for row in first_rows(8) if not row.harmful]
    alike = [*answered[4:], *(replace(row, harmful=True) for row in answered[:4])]
    found = attack.prepare(model, alike, rng=torch.Generator())
    assert found.data["tokens"] == [] and found.check["verdict"] == "failed"
    assert "open alike" in found.check["faults"][0]
    check = attack.prepare(model, first_rows(64), rng=torch.Generator()).check
    assert check["harmful"] == 16 and check["refused_before"] == 1.0 and check["refused"] < 0.6
    assert (check["verdict"] == "good") == (not check["faults"])


@pytest.mark.parametrize("name", ["pocket-llama", "pocket-qwen2"])
def test_answers_are_scored_as_they_are_decoded(name: str) -> None:
    """Log-probabilities of a whole answer equal those that decoding has, step by step."""
    model = pocket(name)
    (row,) = [row for row in first_rows(1) if row.harmful]
    messages = model.conversation(row.text)
    ids, roles = model.chat.tokens(messages)
    common = torch.tensor([model.chat.ids(text)[0] for text in ("I", " I", "Sure", " the")])
    push = torch.randn(model.width, generator=torch.Generator().manual_seed(0))
    changes = (
        SuppressTokens(common, -100.0, 2),
        SuppressTokens(common, -float("inf"), 1),
        AddDirection(push, model.n_layers // 2, 2.0, prompt_only=True),
        FirstToken(Force((model.chat.ids("Well")[0],))),
    )
    for change in changes:
        mask = torch.ones_like(ids, dtype=torch.bool).unsqueeze(0)
        with intervening(model.hf, model.structure, [change], roles=roles.unsqueeze(0), mask=mask):
            output = model.hf.generate(
                input_ids=ids.unsqueeze(0),
                attention_mask=mask.long(),
                max_new_tokens=6,
                return_dict_in_generate=True,
                output_logits=True,
            )
        decoded = torch.stack(output.logits, 1)[0].log_softmax(-1)
        answer = output.sequences[0, len(ids) :]
        told = with_answer(roles, answer)
        dialogue = Dialogue(torch.cat([ids, answer]), told, len(ids))
        (scored,) = answer_log_probs(model, [dialogue], [change])
        torch.testing.assert_close(scored, decoded, atol=1e-3, rtol=1e-4)
        assert answer_kl(model, dialogue, [change]) > 0.001
