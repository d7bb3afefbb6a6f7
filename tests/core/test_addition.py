"""Vectors that undo refusal when they are added, and how far directions act on each other."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from attacks import load
from attacks.core.artefact import Artefact
from attacks.core.errors import BadInput
from attacks.core.interventions import AddDirection
from attacks.core.reading.answers import answers
from attacks.core.reading.dialogues import Dialogue, answer_log_probs, cross_entropy
from attacks.core.reading.states import last_token
from attacks.core.refusals import subspace as refusal_subspace
from attacks.core.refusals.directions import direction_at
from attacks.core.refusals.fit_subspace import orthonormal
from attacks.core.refusals.independence import dependence
from attacks.core.refusals.subspace import fitted_on, fitting_dialogues
from attacks.core.refusals.verdicts import Examiner, hold_out
from attacks.core.sites import Site
from attacks.core.weights import Orthogonalise
from benchmarks.inputs.behaviors import load_behaviors
from conftest import count_right, first_rows, pocket

RECIPES = ("pocket-gemma2", "pocket-llama-hard3", "pocket-llama-no-ablation")


@cache
def fitted(name: str) -> Artefact:
    rng = torch.Generator().manual_seed(0)
    return load("refusal-addition").prepare(pocket(name), first_rows(48), rng=rng)


def test_the_gradient_to_an_added_vector_equals_finite_differences() -> None:
    model = pocket("pocket-qwen2")
    rng = torch.Generator().manual_seed(0)
    vector = torch.randn(model.width, generator=rng).requires_grad_()
    asked = [Dialogue.of(model, row.text, row.affirmative) for row in first_rows(2)]

    def loss(at: torch.Tensor) -> torch.Tensor:
        return cross_entropy(answer_log_probs(model, asked, [AddDirection(at, 2, 1.0)]), asked)

    (gradient,) = torch.autograd.grad(loss(vector), [vector])
    for _ in range(3):
        way = torch.randn(vector.shape, generator=rng)
        way = 1e-2 * way / way.norm()
        with torch.no_grad():
            slope = float(loss(vector + way) - loss(vector - way)) / 2
        assert slope == pytest.approx(float((gradient * way).sum()), rel=2e-2, abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_an_added_vector_undoes_refusals_or_says_that_it_does_not(name: str) -> None:
    model, artefact = pocket(name), fitted(name)
    test = [row for row in first_rows(12, name="pocket-test") if row.harmful]
    change = [load("refusal-addition").change(model, artefact)]
    said = answers(model, [row.text for row in test], tokens=60, interventions=change)
    assert artefact.check["verdict"] == "good", artefact.check
    assert count_right(test, said) >= 9


def test_without_steps_it_is_activation_addition() -> None:
    model, train = pocket("pocket-llama"), first_rows(16)
    artefact = load("refusal-addition", layer=3, fit_steps=0).prepare(
        model, train, rng=torch.Generator().manual_seed(0)
    )
    assert [one["source"] for one in artefact.data["tried"]] == ["means"]
    # Three quarters of the rows are fitted on: the means are close to those of all.
    harmful, harmless = (
        [row.text for row in train if row.harmful == flag] for flag in (True, False)
    )
    mean = direction_at(model, harmful, harmless, layer=3, position=-1)
    assert torch.cosine_similarity(artefact.tensors["vector"], -mean, dim=0) > 0.95


def test_the_same_seed_fits_the_same_vector() -> None:
    attack, model = load("refusal-addition", layer=2, fit_steps=20), pocket("pocket-llama")
    first, again = (
        attack.prepare(model, first_rows(8), rng=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert first.hash == again.hash and first.check == again.check


def test_bad_parameters_of_addition_are_named() -> None:
    model = pocket("pocket-llama")
    for params in ({"layer": 6}, {"layer": -1}, {"fit_batch": 0}, {"fit_steps": -1}):
        with pytest.raises(BadInput, match=next(iter(params))):
            load("refusal-addition", **params).prepare(model, first_rows(8), rng=torch.Generator())


FITS = ("refusal-addition", "refusal-subspace")


@pytest.mark.parametrize("name", FITS)
def test_too_few_training_behaviours_are_named_with_what_needs_them(name: str) -> None:
    with pytest.raises(BadInput, match=rf"^{name} needs at least 4 harmful .* got 3"):
        load(name).prepare(pocket("pocket-llama"), first_rows(3), rng=torch.Generator())


def test_a_model_that_answers_nothing_is_named_with_what_needs_it() -> None:
    model = pocket("pocket-llama")
    fit, held_out = hold_out(first_rows(8), torch.Generator().manual_seed(0), who="")
    harmful = [row for row in fit if row.harmful]
    with pytest.raises(BadInput, match=r"answers 0 of 6 harmless .*; some-fit needs"):
        fitting_dialogues(model, harmful, harmful, Examiner(model, fit, held_out), who="some-fit")


def test_no_fit_reads_more_rows_than_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beyond it cost an answer each and a fit of this length never draws most of them."""
    monkeypatch.setattr(refusal_subspace, "FITTED", 3)
    assert [len(rows) for rows in fitted_on(first_rows(8))] == [3, 3]
    train, model = first_rows(8), pocket("pocket-llama")
    fit, _ = hold_out(train, torch.Generator().manual_seed(0), who="")
    texts = [[row.text for row in rows] for rows in fitted_on(fit)]
    start = -direction_at(model, *texts, layer=3, position=-1)
    unmoved = load("refusal-addition", layer=3, fit_steps=0)
    kept = unmoved.prepare(model, train, rng=torch.Generator().manual_seed(0))
    torch.testing.assert_close(kept.tensors["vector"], start.float())


def test_dependence_is_that_of_edited_weights() -> None:
    """Ablation takes one path through the code, orthogonalised weights another."""
    model = pocket("pocket-llama")
    basis = orthonormal(torch.randn((2, model.width), generator=torch.Generator().manual_seed(0)))
    texts = [row.text for row in first_rows(4)]
    found = dependence(model, basis, texts)
    assert found.diagonal().tolist() == [0, 0] and float(found.max()) > 1e-3
    sites = [Site(layer, "resid_post") for layer in range(model.n_layers)]
    changes = []
    for edit in ([], [Orthogonalise(basis[1])]):
        with model.editing(edit):
            states = last_token(model, texts, sites, interventions=edit)
        rows_ = torch.stack([states[site] for site in sites])
        changes.append(torch.cosine_similarity(rows_, basis[0], dim=-1))
    expected = float((changes[1] - changes[0]).abs().mean())
    assert float(found[0, 1]) == pytest.approx(expected, rel=1e-2, abs=1e-5)
    # The length and sign of a direction say nothing.
    torch.testing.assert_close(dependence(model, -3 * basis, texts), found, atol=1e-5, rtol=1e-3)


def test_a_change_that_leaves_words_and_takes_facts_is_seen() -> None:
    """Fluent answers with other facts: low KL, nothing refused, nothing garbled."""
    name, train = "pocket-llama", load_behaviors("pocket-train")
    attack = load("refusal-direction", mode="add")
    artefact = attack.prepare(pocket(name), train, rng=torch.Generator().manual_seed(0))
    harmless = [row for row in load_behaviors("pocket-test") if not row.harmful][:24]
    change = [attack.change(pocket(name), artefact)]
    said = answers(pocket(name), [b.text for b in harmless], tokens=64, interventions=change)
    check = artefact.check
    assert count_right(harmless, said) < 20 and check["kl"] < 0.2 and check["kept"] > 0.9
    assert check["verdict"] == "failed" and check["changed"] > 0.2


def test_an_answer_of_the_plain_model_has_not_changed() -> None:
    model = pocket("pocket-qwen2")
    fit, held_out = hold_out(first_rows(24), torch.Generator().manual_seed(0), who="")
    examiner = Examiner(model, fit, held_out)
    nothing = AddDirection(torch.zeros(model.width), 2, 1.0)
    found = examiner.check([nothing])
    assert found.changed == 0 and found.kl == pytest.approx(0, abs=1e-6) and found.kept == 1


def test_nothing_is_told_from_answers_that_open_with_a_dropped_token() -> None:
    """Of a model that says a control token first, answers as text are unlikely as they stand."""
    model = pocket("pocket-llama-token")
    fit, held_out = hold_out(first_rows(12), torch.Generator().manual_seed(0), who="")
    nothing = AddDirection(torch.zeros(model.width), 2, 1.0)
    found = Examiner(model, fit, held_out).check([nothing])
    assert found.changed is None and found.kept == 1
