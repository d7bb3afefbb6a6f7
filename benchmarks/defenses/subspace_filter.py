"""A filter on embeddings like SAFREE: trigger tokens are projected out of a harmful subspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor

from attacks.core.artefact import Artefact
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.interventions import Context, Intervention
from attacks.core.prompt import INSTRUCTION, Messages
from attacks.core.shields import Exchange, Shield, Shielded
from attacks.core.sites import Site
from benchmarks.defenses.defense import Defense, texts_of
from benchmarks.defenses.thresholds import halves

if TYPE_CHECKING:
    from attacks.core.model import Model

#: Singular values below this share of the largest count as none.
_CUT = 1e-5


@dataclass(frozen=True)
class SubspaceFilter(Defense):
    """Moves trigger tokens out of a harmful subspace before the model reads them.

    The text side of SAFREE (arXiv 2410.12761, section 3.1), a filter for images, applied to the
    embeddings of the request's tokens. A token is a trigger if the mean of the others, without it,
    is further from the harmful subspace than such means are on average, by the factor 1 + `alpha`.
    A trigger is projected onto the span of those means and then out of the harmful subspace.

    This rule carries over. The rest does not: the concepts are the `rank` principal directions of
    harmful training requests around the mean of harmless ones, instead of words named by a user;
    the encoder is the embedding table, which is context-free; and the strength that SAFREE sets by
    the number of denoising steps has no counterpart, as there are none.
    """

    name: ClassVar[str] = "subspace-filter"
    summary: ClassVar[str] = "projects trigger tokens out of a harmful subspace of the embeddings"
    adapts: ClassVar = "gradient"
    changes: ClassVar[bool] = True
    needs_train: ClassVar[bool] = True

    rank: int = 4
    """Rank of the harmful subspace, in the space of embeddings."""
    alpha: float = 0.01
    """How much further than average, as a share, counts as a trigger."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise BadInput(f"subspace-filter: rank={self.rank}: must be at least 1")
        if self.alpha < 0:
            raise BadInput(f"subspace-filter: alpha={self.alpha}: must be at least 0")

    def fit(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """The harmful subspace, from half of the behaviours; of the others, how much is edited.

        Raises:
            BadInput: too few behaviours, or a rank that they or the embeddings do not have.
        """
        rows, held = halves(train, rng=rng)
        pooled = {
            kind: torch.stack(
                [_tokens(model, text).mean(0) for text in texts_of(rows, harmful=kind)]
            )
            for kind in (True, False)
        }
        centre = pooled[False].mean(0)
        if self.rank >= min(len(pooled[True]), centre.shape[0]):
            raise BadInput(
                f"subspace-filter: rank={self.rank} needs more than {self.rank} harmful "
                "requests and embeddings at least that wide"
            )
        _, _, directions = torch.linalg.svd(pooled[True] - centre, full_matrices=False)
        basis = directions[: self.rank].contiguous()
        made = {"basis": basis.float(), "centre": centre.float()}
        edited = {}
        for kind in (True, False):
            shares = [
                float(triggers(tokens - centre, basis, self.alpha).double().mean())
                for text in texts_of(held, harmful=kind)
                if len(tokens := _tokens(model, text)) > 1
            ]
            edited[kind] = sum(shares) / max(1, len(shares))
        check = {
            "verdict": "good",
            "faults": [],
            "notes": [
                f"edits {edited[True]:.2f} of harmful and {edited[False]:.2f} of harmless tokens"
            ],
            "edited_harmful": edited[True],
            "edited_harmless": edited[False],
        }
        return Artefact(made, check=check)

    def around(self, model: Model, artefact: Artefact) -> Model:
        """The model with its embeddings filtered."""
        from attacks.core.model import ShieldedModel

        filtering = Filter(artefact.tensors["basis"], artefact.tensors["centre"], self.alpha)
        return ShieldedModel(model.changed([filtering]), [_WholePrompts()])


@dataclass(frozen=True, eq=False)
class Filter(Intervention):
    """SAFREE's rule on the embeddings of each row's request, which must be whole in the pass."""

    basis: Tensor
    """(k, D) orthonormal rows."""
    centre: Tensor
    """(D,) what distances are counted from."""
    alpha: float

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site(-1, "embed"),)

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        if ctx.step > 0:
            return activation
        if ctx.roles is None:
            raise BadInput("a filter on requests needs a pass that knows the roles")
        own = (ctx.roles.to(activation.device) == INSTRUCTION).expand(activation.shape[:2])
        exact = activation.to(torch.promote_types(activation.dtype, torch.float32))
        basis, centre = self.basis.to(exact), self.centre.to(exact)
        rows = []
        for row, here in zip(exact, own, strict=True):
            if int(here.sum()) < 2:
                rows.append(row)
                continue
            new = filtered(row[here] - centre, basis, self.alpha) + centre
            rows.append(row.masked_scatter(here.unsqueeze(1), new))
        return torch.stack(rows).to(activation.dtype)


def others(tokens: Tensor) -> Tensor:
    """(n, D) the mean of all other tokens, for each of the (n, D)."""
    return (tokens.sum(0) - tokens) / (len(tokens) - 1)


def triggers(tokens: Tensor, basis: Tensor, alpha: float) -> Tensor:
    """(n,) whether each of the tokens (n, D), of which there are two or more, is a trigger."""
    means = others(tokens)
    basis = basis.to(means.dtype)
    away: Tensor = (means - (means @ basis.T) @ basis).norm(dim=1)
    rest: Tensor = others(away.unsqueeze(1)).squeeze(1)
    return away >= (1 + alpha) * rest


def filtered(tokens: Tensor, basis: Tensor, alpha: float) -> Tensor:
    """(n, D) the tokens with the triggers among them projected; gradients flow through that."""
    chosen = triggers(tokens.detach(), basis, alpha)
    if not chosen.any():
        return tokens
    # Projection onto the rows of `means`, in a form that has a gradient where they are dependent.
    means = others(tokens).double()
    gram = means @ means.T
    inverse = torch.linalg.pinv(gram, rtol=_CUT, hermitian=True)
    within = (tokens.double() @ means.T) @ inverse @ means
    wide = basis.double()
    out = within - (within @ wide.T) @ wide
    return torch.where(chosen.unsqueeze(1), out.to(tokens.dtype), tokens)


def _tokens(model: Model, text: str) -> Tensor:
    """(n, D) float64 embeddings of a request's tokens."""
    prompt = model.plain(text)
    return model.embed(prompt.ids[prompt.roles == INSTRUCTION]).detach().double().cpu()


class _WholePrompts(Shield):
    """Lets everything through, and has searches read each prompt in one pass."""

    whole: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return SubspaceFilter.name

    def answer(self, exchange: Exchange, asked: Sequence[Messages]) -> list[Shielded]:
        return exchange.ask(asked)
