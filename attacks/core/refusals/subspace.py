"""How many directions a model's refusals need, and which: fitted, checked, the fewest that do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.interventions import AblateSubspace
from attacks.core.reading.answers import answers
from attacks.core.reading.dialogues import Dialogue
from attacks.core.reading.states import last_token
from attacks.core.refusals.branching import branched_answers
from attacks.core.refusals.fit_subspace import fit_subspace
from attacks.core.refusals.independence import dependence
from attacks.core.refusals.verdicts import LEAST, LEFT, TOKENS, Check, Examiner, hold_out
from attacks.core.sites import Site
from attacks.core.weights import Change

if TYPE_CHECKING:
    from attacks.core.model import Model

#: Numbers of directions tried in turn.
DIMENSIONS = (1, 2, 4)
#: Prompts of a kind that directions are fitted on at most: more than a fit of this length sees.
FITTED = 128
SOURCES = ("gradient", "means")
#: Whose words the targets of a fit are in: the behaviours', or the model's.
GIVEN, OWN = "given", "own"


@dataclass(frozen=True, eq=False)
class RefusalSubspace:
    """Orthonormal directions and what ablating them does to held-out prompts."""

    basis: Tensor
    """(k, D)"""
    check: Check
    tried: tuple[dict[str, Any], ...]
    """Each number of directions that was tried, with its check, how the fit went, and whether its
    `targets` were given or the model's own; beyond one direction, `dependence` is the largest
    effect of ablating one on another (`attacks.core.refusals.independence`)."""


def find_refusal_subspace(
    model: Model,
    train: Sequence[Behavior],
    *,
    rng: Generator,
    dimensions: int = 0,
    source: str = "gradient",
    steps: int = 150,
    batch: int = 8,
    examiner: Examiner | None = None,
    use: Callable[[Tensor], Change] | None = None,
) -> RefusalSubspace:
    """The fewest directions whose ablation removes refusal and keeps harmless answers.

    A quarter of the training behaviours is held out, and each number of directions is checked on
    it. The first good one is taken (see `Check.good`). Where the behaviours' targets bring none,
    the fits are repeated with answers in the model's own words as targets (`branched_answers`);
    where these bring none either, the one with the lowest `Check.cost` is taken.

    Args:
        model: the model.
        train: harmful behaviours, whose targets are to become likely, and harmless ones, the
            answers to which are to stay.
        rng: draws the split, the start and the batches.
        dimensions: number of directions; 0 tries `DIMENSIONS` in turn.
        source: "gradient" (arXiv 2502.17420), or "means": principal components of the differences
            between single harmful prompts and the mean of the harmless ones, at the layer whose
            first component does best.
        steps: of each fit, at most.
        batch: dialogues of a kind in each step.
        examiner: of this model, where there is one; it may have been made from other held-out rows.
        use: the change made with (k, D) directions, which is what is checked; by default ablation.

    Raises:
        BadInput: fewer than four behaviours of a kind, or a parameter that is out of range.
    """
    width = model.embedding_table.shape[1]
    for name, value, most in (("dimensions", dimensions, width), ("fit_batch", batch, None)):
        if value < (name == "fit_batch") or (most is not None and value > most):
            raise BadInput(f"refusal-subspace: {name}={value} is out of range")
    if steps < 0:
        raise BadInput(f"refusal-subspace: fit_steps={steps}; valid: 0 or more")
    if source not in SOURCES:
        raise BadInput(f"refusal-subspace: source '{source}'; valid: {', '.join(SOURCES)}")
    fit, held_out = hold_out(train, rng, who="refusal-subspace")
    examiner = examiner or Examiner(model, fit, held_out)
    candidates = [dimensions] if dimensions else [k for k in DIMENSIONS if k <= width]
    harmful, harmless = fitted_on(fit)
    bad, good = fitting_dialogues(model, harmful, harmless, examiner, who="refusal-subspace")
    tried: list[tuple[Tensor, Check, dict[str, Any]]] = []

    def attempt(k: int, basis: Tensor, **how: Any) -> bool:
        check = examiner.check([use(basis) if use else AblateSubspace(basis, model.n_layers)])
        evidence = {"dimensions": k, **how, "check": check.data}
        if k > 1:
            evidence["dependence"] = float(dependence(model, basis, examiner.harmful).max())
        tried.append((basis, check, evidence))
        return check.good

    def fit_in_turn(dialogues: Sequence[Dialogue], targets: str) -> bool:
        start = None
        for k in candidates:
            found = fit_subspace(
                model, dialogues, good, k=k, rng=rng, steps=steps, batch=batch, start=start
            )
            start = found.value
            how = {"steps": found.steps, "target_loss": found.target_loss, "kl": found.kl}
            if attempt(k, found.value, targets=targets, fit=how):
                return True
        return False

    if source == "means":
        components = _components(model, harmful, harmless, examiner, max(candidates))
        any(attempt(k, components[:k], fit={}) for k in candidates)
    elif not fit_in_turn(bad, GIVEN) and steps and examiner.refused_before > LEFT:
        own = branched_answers(
            model, [row.text for row in harmful], examiner, tokens=examiner.tokens
        )
        if len(own) >= LEAST:
            fit_in_turn([Dialogue.of(model, *pair) for pair in own], OWN)
    basis, check, _ = next(
        (one for one in tried if one[1].good), min(tried, key=lambda one: one[1].cost)
    )
    return RefusalSubspace(basis, check, tuple(how for _, _, how in tried))


def fitted_on(fit: Sequence[Behavior]) -> tuple[list[Behavior], list[Behavior]]:
    """The first `FITTED` harmful and the first `FITTED` harmless behaviours."""
    harmful, harmless = ([b for b in fit if b.harmful == flag][:FITTED] for flag in (True, False))
    return harmful, harmless


def fitting_dialogues(
    model: Model,
    harmful: Sequence[Behavior],
    harmless: Sequence[Behavior],
    examiner: Examiner,
    *,
    who: str,
) -> tuple[list[Dialogue], list[Dialogue]]:
    """Harmful requests with their targets, and harmless ones with the model's own answers.

    Harmless requests that the plain model refuses are left out: those refusals need not stay.
    `who` is what is fitted, for messages.

    Raises:
        BadInput: the model answers fewer than two of the harmless requests.
    """
    said = answers(model, [row.text for row in harmless], tokens=TOKENS)
    kept = [
        Dialogue.of(model, row.text, answer)
        for row, answer in zip(harmless, said, strict=True)
        if answer and not examiner.refuses(answer)
    ]
    if len(kept) < 2:
        raise BadInput(
            f"model '{model.name}' answers {len(kept)} of {len(harmless)} harmless training "
            f"prompts; {who} needs at least 2"
        )
    return [Dialogue.of(model, row.text, row.affirmative) for row in harmful], kept


def _components(
    model: Model,
    harmful: Sequence[Behavior],
    harmless: Sequence[Behavior],
    examiner: Examiner,
    k: int,
) -> Tensor:
    """(k, D) uncentred principal components of harmful states minus the harmless mean.

    At the last token of the block's output whose first component costs least on held-out prompts.
    """
    sites = [Site(layer, "resid_post") for layer in range(model.n_layers - 1)]
    bad, good = (last_token(model, [b.text for b in rows], sites) for rows in (harmful, harmless))
    found = []
    for site in sites:
        differences = bad[site].double() - good[site].double().mean(0)
        rows = torch.linalg.svd(differences, full_matrices=False).Vh[:k].float()
        check = examiner.check([AblateSubspace(rows[:1], model.n_layers)])
        found.append((check.cost, rows))
    best: Tensor = min(found, key=lambda pair: pair[0])[1]
    return best
