"""Probe sampling: rank agreement, what the draft lets through, and who pays for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import cross_entropy

from attacks import load
from attacks.attack import Behavior
from attacks.core.artefact import EMPTY
from attacks.core.errors import BadInput
from attacks.core.model import Model
from attacks.core.objectives import TargetCrossEntropy
from attacks.core.prompt import Prompt, suffixed
from attacks.core.search import CoordinateSearch, Evaluator, ProbeSampling, search_suffix
from attacks.core.search.candidates import swap, uniform_choices
from attacks.core.search.screening import DraftLosses, filtered_size, rank_correlation
from attacks.core.search.suffix import Pursuit
from conftest import pocket


def candidates_of(model: Model, behavior: Behavior, count: int) -> tuple[Prompt, Tensor]:
    rng = torch.Generator().manual_seed(1)
    prompt = model.prompt(suffixed(behavior, 5), target=behavior.target, rng=rng)
    choices = uniform_choices(prompt.slot_ids, model.chat.allowed)
    drawn = swap(prompt.slot_ids, choices, width=count, n_replace=2, rng=rng)
    return prompt, drawn[model.chat.survives(prompt, drawn)]


def test_rank_correlation_is_spearmans(rng: torch.Generator) -> None:
    for _ in range(5):
        one = torch.randint(0, 6, (12,), generator=rng).float()
        other = torch.randint(0, 6, (12,), generator=rng).float()
        expected = spearmanr(one.numpy(), other.numpy()).statistic
        assert rank_correlation(one, other) == pytest.approx(float(expected), abs=1e-9)
    constant = torch.ones(4)
    assert rank_correlation(constant, torch.arange(4.0)) == 0, "no agreement can be seen"


def test_the_better_the_agreement_the_fewer_are_let_through() -> None:
    numbers = ProbeSampling(reduction=4.0)
    # (1 - alpha) * B / R with alpha = (1 + rho) / 2, by hand.
    assert [filtered_size(rho, 64, numbers) for rho in (1.0, 0.5, 0.0, -1.0)] == [1, 4, 8, 16]
    assert filtered_size(-1.0, 64, ProbeSampling(reduction=0.5)) == 64, "no more than there are"


@pytest.mark.parametrize("name", ["pocket-llama-raw", "pocket-qwen2"])
def test_the_draft_is_asked_in_its_own_words(name: str, behavior: Behavior) -> None:
    """Against plain transformers on each conversation alone; qwen2 has another tokenizer."""
    model = pocket("pocket-llama")
    prompt, candidates = candidates_of(model, behavior, 24)
    conversations = model.chat.messages(prompt, candidates)
    draft = pocket(name)
    losses = DraftLosses(draft, behavior.affirmative, TargetCrossEntropy()).losses(conversations)
    for messages, loss in zip(conversations, losses.tolist(), strict=True):
        text = draft.chat.render(messages)
        start, whole = len(draft.chat.ids(text)), draft.chat.ids(text + behavior.affirmative)
        with torch.no_grad():
            logits = draft.hf(input_ids=torch.tensor([whole])).logits[0]
        expected = cross_entropy(logits[start - 1 : -1], torch.tensor(whole[start:]))
        assert loss == pytest.approx(float(expected), rel=1e-3, abs=2e-5)


def test_a_draft_that_is_the_model_selects_like_plain_search(behavior: Behavior) -> None:
    """rho = 1 lets one candidate through: the very best, for a fraction of the forward passes."""
    model = pocket("pocket-llama")
    prompt, candidates = candidates_of(model, behavior, 60)
    work = Evaluator(model, prompt, TargetCrossEntropy().bind(model, prompt, EMPTY))
    losses = work.losses(candidates)
    numbers = ProbeSampling("pocket-llama", probe=0.1)
    screen = numbers.screen(model, prompt, behavior.affirmative, TargetCrossEntropy())
    rng = torch.Generator().manual_seed(0)
    ids, found = screen(candidates, work, len(candidates), rng)
    assert len(ids) <= round(0.1 * len(candidates)) + 1
    assert ids[found.argmin()].tolist() == candidates[losses.argmin()].tolist()
    torch.testing.assert_close(found.min(), losses.min(), atol=2e-5, rtol=1e-4)
    assert len({tuple(row) for row in ids.tolist()}) == len(ids), "nothing is paid for twice"


def test_the_drafts_work_is_charged_to_the_model_under_attack(behavior: Behavior) -> None:
    model = pocket("pocket-llama")
    prompt, candidates = candidates_of(model, behavior, 40)
    draft = DraftLosses(pocket("pocket-qwen2"), behavior.affirmative, TargetCrossEntropy())
    before = draft.draft.meter.snapshot()
    draft.losses(model.chat.messages(prompt, candidates))
    cost = (draft.draft.meter.snapshot() - before).flops
    assert cost > 0

    class Free:
        def losses(self, rows: Tensor, k: int | None = None) -> Tensor:
            return rows.float().sum(1)

    numbers = ProbeSampling("pocket-qwen2")
    screen = numbers.screen(model, prompt, behavior.affirmative, TargetCrossEntropy())
    before = model.meter.snapshot()
    screen(candidates, Free(), 10, torch.Generator())  # type: ignore[arg-type]
    assert (model.meter.snapshot() - before).flops == cost


def test_gcg_with_a_draft_is_reproducible_and_goes_on_bit_identically(behavior: Behavior) -> None:
    model = pocket("pocket-llama-hard1")
    numbers: dict[str, Any] = {"steps": 3, "width": 32, "topk": 16, "slots": 4}
    attack = load("gcg", **numbers, draft={"model": "pocket-qwen2"})

    def run(state=None):  # type: ignore[no-untyped-def]
        rng = torch.Generator().manual_seed(3)
        return list(attack.run(model, behavior, artefact=EMPTY, rng=rng, state=state))

    whole = run()
    rest = run(whole[0].state)
    assert [step.loss for step in rest] == [step.loss for step in whole[1:]]
    assert [step.prompts for step in rest] == [step.prompts for step in whole[1:]]


def test_bad_numbers_and_unknown_drafts_are_refused(behavior: Behavior) -> None:
    for wrong in ({"probe": 0.0}, {"probe": 1.5}, {"reduction": 0.0}):
        with pytest.raises(BadInput, match="reduction"):
            ProbeSampling(**wrong)
    found = search_suffix(
        pocket("pocket-llama"),
        behavior,
        Pursuit(TargetCrossEntropy(), behavior.affirmative),
        CoordinateSearch(1, 4, 4),
        slots=2,
        artefact=EMPTY,
        rng=torch.Generator(),
        draft=ProbeSampling("no-such-model"),
    )
    with pytest.raises(BadInput, match="no-such-model"):
        next(found)
