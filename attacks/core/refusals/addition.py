"""A vector that removes refusal when it is added at one block: fitted by gradient, and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.interventions import AddDirection
from attacks.core.reading.answers import answers
from attacks.core.refusals.directions import direction_at
from attacks.core.refusals.fit_subspace import fit_by_gradient
from attacks.core.refusals.subspace import fitted_on, fitting_dialogues
from attacks.core.refusals.verdicts import TOKENS, Check, Examiner, hold_out

if TYPE_CHECKING:
    from attacks.core.model import Model

#: Blocks that the difference in means is tried at, evenly spread over the depths of `_DEPTHS`.
_BLOCKS, _DEPTHS = 4, (0.2, 0.8)


@dataclass(frozen=True, eq=False)
class RefusalAddition:
    """A vector and what adding it does to held-out prompts."""

    vector: Tensor
    """(D,) float32, as long as it is to be added."""
    layer: int
    """Block at whose input it is added, at all positions."""
    check: Check
    induced: float | None
    """Held-out harmless prompts that are refused once it is subtracted instead; None where the
    plain model answers none of them. A direction of refusal works both ways."""
    tried: tuple[dict[str, Any], ...]
    """The differences in means at each block, and the fit; with their checks."""


def find_refusal_addition(
    model: Model,
    train: Sequence[Behavior],
    *,
    rng: Generator,
    layer: int | None = None,
    steps: int = 150,
    batch: int = 8,
) -> RefusalAddition:
    """Start at the difference in means that does best when subtracted, and fit it by gradient.

    The start is activation addition (arXiv 2406.11717, section 2.4); the fit has the loss of
    `fit_by_gradient`. Of the two, the one with the lower `Check.cost` is taken.

    Args:
        model: the model.
        train: harmful behaviours, whose targets are to become likely, and harmless ones.
        rng: draws the split and the batches.
        layer: block at whose input to add; None: of some blocks the best start.
        steps: of the fit, at most; 0 leaves the difference in means.
        batch: dialogues of a kind in each step.

    Raises:
        BadInput: fewer than four behaviours of a kind, or a parameter that is out of range.
    """
    if layer is not None and not 0 <= layer < model.n_layers:
        raise BadInput(f"refusal-addition: layer={layer}; valid: 0 to {model.n_layers - 1}")
    for name, value, least in (("fit_steps", steps, 0), ("fit_batch", batch, 1)):
        if value < least:
            raise BadInput(f"refusal-addition: {name}={value}; valid: {least} or more")
    fit, held_out = hold_out(train, rng, who="refusal-addition")
    examiner = Examiner(model, fit, held_out)
    harmful, harmless = fitted_on(fit)
    texts = [[row.text for row in rows] for rows in (harmful, harmless)]

    def checked(at: int, vector: Tensor, **how: Any) -> tuple[Check, int, Tensor, dict[str, Any]]:
        check = examiner.check([AddDirection(vector, at, 1.0)])
        return check, at, vector, {"layer": at, **how, "check": check.data}

    tried = [
        checked(at, -direction_at(model, *texts, layer=at, position=-1).float(), source="means")
        for at in ([layer] if layer is not None else _blocks(model.n_layers))
    ]
    _, at, start, _ = min(tried, key=lambda one: one[0].cost)
    if steps:
        length = start.norm()
        found = fit_by_gradient(
            model,
            *fitting_dialogues(model, harmful, harmless, examiner, who="refusal-addition"),
            start=(start / length).unsqueeze(0),
            value=lambda raw: raw * length.to(raw.device),
            use=lambda vector: [AddDirection(vector[0], at, 1.0)],
            rng=rng,
            steps=steps,
            batch=batch,
        )
        how = {"steps": found.steps, "target_loss": found.target_loss, "kl": found.kl}
        tried.append(checked(at, found.value[0], source="gradient", fit=how))
    check, at, vector, _ = min(tried, key=lambda one: one[0].cost)
    return RefusalAddition(
        vector, at, check, _induced(model, examiner, vector, at), tuple(one[3] for one in tried)
    )


def _blocks(n_layers: int) -> list[int]:
    first, last = (depth * (n_layers - 1) for depth in _DEPTHS)
    return sorted({round(at) for at in torch.linspace(first, last, _BLOCKS).tolist()})


def _induced(model: Model, examiner: Examiner, vector: Tensor, layer: int) -> float | None:
    if not examiner.harmless:
        return None
    change = [AddDirection(vector, layer, -1.0)]
    said = answers(model, examiner.harmless, tokens=TOKENS, interventions=change)
    return sum(map(examiner.refuses, said)) / len(said)
