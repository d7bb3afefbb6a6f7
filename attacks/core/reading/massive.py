"""Massive activations: single values hundreds of times the rest, which rule what is read with them.

Some dimensions carry them at some tokens (the first one, delimiters, marks of the template), nearly
the same for every prompt (arXiv 2402.17762). A mean read there is mostly such a value, and the
small share of it that differs between two sets of prompts may be larger than the rest of what they
differ in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attacks.core.errors import BadInput
from attacks.core.reading.states import Text, read, tail
from attacks.core.sites import Site

if TYPE_CHECKING:
    from attacks.core.model import Model

RATIO = 100.0
"""Times the median magnitude of a token's state from which a value may be massive.

The paper asks for a magnitude over 100 and about 1000 times the median. How large states are is a
matter of the family, so there is no absolute bound here; what guards against small outliers is the
share of the norm. The largest of 10,000 normally distributed values is 6 times their median.
"""
SHARE = 0.25
"""Of a state's squared norm, which its massive values must hold together."""
RULED = 0.5
"""Of a difference's squared norm: from here on the massive dimensions rule it."""
#: A difference this small, relative to the states, is one of rounding: all prompts share the token.
_NOTHING = 1e-5


@dataclass(frozen=True)
class Massive:
    """The largest massive value of one token at one block's input, on average over prompts."""

    layer: int
    position: int
    """Counted from the end of the prompt, -1 the last token; 0 is the first."""
    token: str
    """Its text."""
    dimension: int
    magnitude: float
    """Mean |x_d| over prompts."""
    ratio: float
    """The magnitude over the median one of the token's dimensions."""
    share: float
    """Of the squared norm that is in the token's massive dimensions together."""
    ruled: float | None = None
    """Share of a difference in means that is in these dimensions, where one was read there."""


def massive_dimensions(states: Tensor) -> Tensor:
    """(..., D) true at dimensions that are massive in states (N, ..., D).

    By mean magnitudes over the N prompts: over `RATIO` times the median of the dimensions, where
    all such dimensions hold `SHARE` of the squared norm. A state whose median is 0 has none.
    """
    sizes = states.abs().double().mean(0)
    middle = sizes.median(-1, keepdim=True).values
    large = (sizes > RATIO * middle) & (middle > 0)
    return large & (_share(sizes, large) >= SHARE).unsqueeze(-1)


def _share(values: Tensor, chosen: Tensor) -> Tensor:
    """(...) of the squared norm of (..., D) that is in the chosen dimensions (..., D)."""
    squares = values.double().square()
    return (squares * chosen).sum(-1) / squares.sum(-1).clamp_min(1e-300)


def _reports(
    states: Tensor, positions: Sequence[int], tokens: Sequence[str], difference: Tensor | None
) -> list[Massive]:
    """One for each position and layer of states (N, P, L, D) with massive dimensions."""
    chosen, sizes = massive_dimensions(states), states.abs().double().mean(0)
    shares = _share(sizes, chosen)
    reports = []
    for at, layer in chosen.any(-1).nonzero().tolist():
        row, mask = sizes[at, layer], chosen[at, layer]
        dimension = int(row.argmax())
        reports.append(
            Massive(
                layer,
                positions[at],
                tokens[at],
                dimension,
                float(row[dimension]),
                float(row[dimension] / row.median()),
                float(shares[at, layer]),
                None if difference is None else float(_share(difference[at, layer], mask)),
            )
        )
    return reports


def massive_activations(
    model: Model, texts: Sequence[Text], *, positions: Sequence[int] | None = None
) -> list[Massive]:
    """Massive values at blocks' inputs, by position and layer.

    Args:
        model: the model.
        texts: asked as plain conversations.
        positions: of the tokens to look at; negative ones count from the end. By default the first
            token and those of the template after the request.

    Raises:
        BadInput: no texts.
    """
    if not texts:
        raise BadInput("finding massive activations needs prompts")
    prompts = [text if not isinstance(text, str) else model.plain(text) for text in texts]
    wanted = positions or (0, *range(-tail(prompts), 0))
    sites = [Site(layer, "resid_pre") for layer in range(model.n_layers)]
    found = read(
        model,
        prompts,
        sites,
        locate=lambda prompt: [range(len(prompt.ids))[at] for at in wanted],
    )
    states = torch.stack([found[site] for site in sites], dim=2)
    tokens = model.chat.decode([[int(prompts[0].ids[at])] for at in wanted])
    return _reports(states, wanted, tokens, None)


def difference(harmful: Tensor, harmless: Tensor) -> Tensor:
    """(P, L, D) difference of the means of (N, P, L, D), exactly 0 where it is one of rounding."""
    one, other = harmful.double().mean(0), harmless.double().mean(0)
    found = one - other
    small = found.norm(dim=-1) < _NOTHING * other.norm(dim=-1)
    return found.masked_fill(small.unsqueeze(-1), 0.0).float()


def set_aside(
    model: Model,
    directions: Tensor,
    kinds: Sequence[Tensor],
    ids: Tensor,
    *,
    depth: float,
) -> tuple[Tensor, tuple[Massive, ...]]:
    """Directions without those that massive activations rule, and what was left out and why.

    Massive are dimensions that are so in the states of either kind. Where half of a difference's
    squared norm (`RULED`) lies in them, it is made 0, which `score_directions` leaves out; but
    where that would leave nothing shallow enough to be chosen, all stay, and the reports say what
    rules them.

    Args:
        model: decodes the tokens.
        directions: (P, L, D) differences in means.
        kinds: (N, P, L, D) states of each kind that they are of, harmful and harmless.
        ids: (T,) a prompt; its last P tokens are those of all.
        depth: share of the layers from which on directions are a last resort.
    """
    places = range(-len(directions), 0)
    tokens = model.chat.decode([[int(ids[at])] for at in places])
    ruled: dict[tuple[int, int], Massive] = {}
    for states in kinds:
        for report in _reports(states, places, tokens, directions):
            before = ruled.get((report.position, report.layer))
            if (report.ruled or 0.0) >= max(RULED, (before and before.ruled) or 0.0):
                ruled[report.position, report.layer] = report
    kept = directions.clone()
    for position, layer in ruled:
        kept[position, layer] = 0.0
    shallow = torch.arange(model.n_layers) < depth * model.n_layers
    usable = bool(kept[:, shallow].any())
    return (kept if usable else directions), tuple(ruled[place] for place in sorted(ruled))


def winsorised(states: Tensor, quantile: float) -> Tensor:
    """(..., D) states with each one's values cut off at a quantile of its own magnitudes.

    Symmetric, for each token by itself, as tools for abliteration do against massive activations
    (`winsorization_quantile` in Heretic); 1 changes nothing.

    Raises:
        BadInput: a quantile that is not above 0 and at most 1.
    """
    if not 0 < quantile <= 1:
        raise BadInput(f"winsorise is a quantile above 0 and at most 1, got {quantile}")
    if quantile == 1:
        return states
    limit = states.abs().quantile(quantile, dim=-1, keepdim=True)
    return states.clamp(-limit, limit)
