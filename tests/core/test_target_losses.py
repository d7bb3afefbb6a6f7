"""Target losses and the terms beside them: direct formulas, finite differences, composition."""

from __future__ import annotations

import math

import pytest
import torch

from attacks.core.artefact import EMPTY, Artefact
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.model import Model
from attacks.core.objectives import (
    LossOptions,
    Objective,
    RefusalOpeners,
    RefusalProjection,
    SlotAttention,
    TargetCrossEntropy,
    TargetLoss,
    TargetMargin,
    TargetMellowmax,
    TargetMismatch,
)
from attacks.core.prompt import Prompt, suffixed
from attacks.core.refusals.openers import refusal_score
from attacks.core.search import Evaluator
from attacks.core.sites import Site
from conftest import check_gradient, pocket, tiny

OPENERS = torch.tensor([40, 41, 77])
LAYER = 2


def fitted(model: Model) -> Artefact:
    rng = torch.Generator().manual_seed(4)
    direction = torch.randn(model.width, generator=rng)
    # So low that harmful and harmless prompts alike are beyond it, and the gradient is not 0.
    return Artefact(
        {"token_ids": OPENERS, "direction": direction, "projection": torch.tensor(-50.0)}
    )


def prompt_of(model: Model, behavior: Behavior, slots: int = 4) -> Prompt:
    rng = torch.Generator().manual_seed(1)
    return model.prompt(suffixed(behavior, slots), target=behavior.target, rng=rng)


def logits_of(rows: int = 3, length: int = 5, vocabulary: int = 11) -> torch.Tensor:
    return 3 * torch.randn((rows, length, vocabulary), generator=torch.Generator().manual_seed(2))


WANTED = torch.tensor([3, 0, 10, 7, 7])


def expected(loss: TargetLoss, rows: torch.Tensor) -> float:
    """One row's loss, token by token in plain Python."""
    nll, raw, behind = [], [], []
    for scores, token in zip(rows.tolist(), WANTED.tolist(), strict=True):
        nll.append(math.log(sum(math.exp(score) for score in scores)) - scores[token])
        raw.append(-scores[token])
        others = [score for index, score in enumerate(scores) if index != token]
        behind.append(max(others) - scores[token])
    if isinstance(loss, TargetCrossEntropy):
        return sum(nll) / len(nll)
    if isinstance(loss, TargetMargin):
        return sum(max(gap, -loss.margin) for gap in behind) / len(behind)
    if isinstance(loss, TargetMismatch):
        return sum(gap > 0 for gap in behind)
    assert isinstance(loss, TargetMellowmax)
    terms = nll if loss.on == "losses" else raw
    return math.log(sum(math.exp(loss.alpha * z) for z in terms) / len(terms)) / loss.alpha


@pytest.mark.parametrize(
    "loss",
    [
        TargetCrossEntropy(),
        TargetMellowmax(),
        TargetMellowmax(0.3),
        TargetMellowmax(2.0, on="logits"),
        TargetMargin(),
        TargetMargin(1.5),
        TargetMismatch(),
    ],
    ids=str,
)
def test_target_losses_against_the_formula(loss: TargetLoss) -> None:
    logits = logits_of()
    logits[0, 0, 3] = 30.0  # One token of the target is ahead by more than the margin.
    found = loss.of(logits, WANTED.expand(3, -1))
    for row in range(3):
        assert float(found[row]) == pytest.approx(expected(loss, logits[row]), rel=1e-5, abs=1e-5)


def test_mellowmax_lies_between_mean_and_maximum_and_ignores_shifts_unless_on_raw_logits() -> None:
    logits, wanted = logits_of(), WANTED.expand(3, -1)
    token = [TargetCrossEntropy().of(logits[:, [at]], wanted[:, [at]]) for at in range(5)]
    losses = torch.stack(token, 1)
    torch.testing.assert_close(
        TargetMellowmax(1e-4).of(logits, wanted), losses.mean(1), rtol=1e-2, atol=1e-2
    )
    torch.testing.assert_close(
        TargetMellowmax(1e4).of(logits, wanted), losses.amax(1), rtol=1e-2, atol=1e-2
    )
    for loss, moves in ((TargetMellowmax(), False), (TargetMellowmax(on="logits"), True)):
        moved = loss.of(logits + 5.0, wanted) - loss.of(logits, wanted)
        torch.testing.assert_close(
            moved, torch.full((3,), -5.0 if moves else 0.0), atol=1e-4, rtol=0
        )


def test_refusal_openers_are_softplus_of_the_refusal_score() -> None:
    model = tiny("llama")
    prompt = model.plain("Hello.")
    bound = RefusalOpeners().bind(model, prompt, fitted(model))
    logits = logits_of(3, 1, 200)
    score = refusal_score(logits[:, 0].log_softmax(1), OPENERS)
    torch.testing.assert_close(
        bound({bound.reads[0]: logits}).double(),
        torch.nn.functional.softplus(score),
        atol=1e-5,
        rtol=1e-5,
    )
    assert bound.reads == (Site(-1, "logits", (len(prompt.ids) - 1,)),)
    sure = logits.clone()
    sure[:, :, OPENERS] = 200.0
    assert bool(torch.isfinite(bound({bound.reads[0]: sure})).all()), (
        "certain refusal is no infinity"
    )
    nothing = Artefact({"token_ids": OPENERS[:0]})
    empty = RefusalOpeners().bind(model, prompt, nothing)
    assert empty({bound.reads[0]: logits}).tolist() == [0, 0, 0]


def test_refusal_projection_counts_what_is_beyond_harmless_prompts() -> None:
    model = tiny("llama")
    prompt = model.plain("Hello.")
    direction = torch.zeros(model.width)
    direction[3] = 2.0
    artefact = Artefact({"direction": direction, "projection": torch.tensor(0.5)})
    bound = RefusalProjection(1).bind(model, prompt, artefact)
    states = torch.zeros(3, 1, model.width)
    states[:, 0, 3] = torch.tensor([4.0, 0.5, -9.0])
    assert bound({bound.reads[0]: states}).tolist() == [3.5, 0.0, 0.0]
    assert bound.reads == (Site(1, "resid_pre", (len(prompt.ids) - 1,)),)


def test_slot_attention_is_that_of_plain_transformers(behavior: Behavior) -> None:
    """The last layer's attention, averaged over heads and over what predicts the target."""
    model = pocket("pocket-llama")
    prompt = prompt_of(model, behavior)
    search = Evaluator(model, prompt, SlotAttention().bind(model, prompt, EMPTY))
    found = float(search.losses(prompt.slot_ids.unsqueeze(0))[0])
    hf = model.hf
    before = hf.config._attn_implementation
    hf.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = hf(input_ids=prompt.sequence.unsqueeze(0), output_attentions=True)
    finally:
        hf.set_attn_implementation(before)
    pattern = out.attentions[-1][0]
    first = len(prompt.ids) - 1
    rows = pattern[:, first : first + len(prompt.target_ids)]
    assert found == pytest.approx(-float(rows[:, :, prompt.slots].mean()), rel=1e-4)


TERMS: list[Objective] = [
    TargetMellowmax(),
    TargetMellowmax(on="logits"),
    TargetMargin(),
    RefusalOpeners(),
    RefusalProjection(LAYER),
    LossOptions(attention=50.0).objective(),
    TargetCrossEntropy() + 0.5 * RefusalOpeners() + 0.1 * RefusalProjection(LAYER),
]


@pytest.mark.parametrize("objective", TERMS, ids=lambda term: type(term).__name__)
def test_gradient_equals_directional_finite_differences(
    objective: Objective, behavior: Behavior
) -> None:
    model = pocket("pocket-llama", "float64")
    prompt = prompt_of(model, behavior)
    bound = objective.bind(model, prompt, fitted(model))
    plain = Evaluator(model, prompt, bound, use_cache=False)
    check_gradient(Evaluator(model, prompt, bound), plain)


def test_no_mismatch_means_that_greedy_decoding_says_the_target(behavior: Behavior) -> None:
    """Both ways, on the model's own answer and on another one."""
    model = pocket("pocket-llama")
    messages = model.conversation("How do I mend the harp?")
    (answer,) = model.generate([messages], max_new_tokens=6)
    for target, matches in ((answer, True), ("I would rather not say that", False)):
        prompt = model.prompt(messages, target=target, rng=torch.Generator())
        bound = TargetMismatch().bind(model, prompt, EMPTY)
        with torch.no_grad():
            count = float(bound(model.trace(prompt.sequence.unsqueeze(0), bound.reads)))
        assert (count == 0) == matches


def test_loss_options_name_the_losses() -> None:
    assert LossOptions().objective() == TargetCrossEntropy()
    assert LossOptions("mellowmax-logits", alpha=2).target() == TargetMellowmax(2, on="logits")
    assert LossOptions("margin", margin=0.1).target() == TargetMargin(0.1)
    for wrong, reason in (
        ({"kind": "hinge"}, "valid: cross-entropy"),
        ({"kind": "margin", "margin": -1.0}, "margin"),
        ({"kind": "mellowmax", "alpha": 0.0}, "alpha"),
        ({"attention": -1.0}, "attention"),
    ):
        with pytest.raises(BadInput, match=reason):
            LossOptions(**wrong)  # type: ignore[arg-type]
