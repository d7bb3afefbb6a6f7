"""Whether a direction works through what reads it, or through a dormant path.

Interpretability illusions of subspace patching (Makelov et al., arXiv 2311.17030): patching along a
direction can change a model's answer although the model never uses the direction. Its part that
varies with the concept reaches nothing, and its part that reaches the output does not vary on real
prompts. So each part is patched alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor

from attacks.core.errors import BadInput
from attacks.core.interventions import Context, Intervention
from attacks.core.model.families import at_path
from attacks.core.reading.states import last_token, next_token_log_probs
from attacks.core.refusals.openers import refusal_score
from attacks.core.sites import Site

if TYPE_CHECKING:
    from attacks.core.model import Model

#: Scores (K,) of one base prompt, by its index, with each row of (K, D) as the site's activation.
Downstream = Callable[[int, Tensor], Tensor]

Verdict = Literal["faithful", "dormant path", "other readers", "no effect", "vacuous"]

#: Thresholds of the verdict, as shares of an effect: of the whole site's, of the direction's.
OF_WHOLE, OF_DIRECTION = 0.3, 0.5
_RANK, _PART = 1e-5, 1e-3
_RANDOM = 8
_MOST_PAIRS = 16


@dataclass(frozen=True)
class Effect:
    """What a patch does, over all pairs of a base and a source prompt."""

    share: float
    """Of the difference in score between source and base prompts that comes along: 1 is all."""
    flips: float | None
    """Share of pairs whose score takes the source's sign, of those where the signs differ
    (interchange accuracy); None where they nowhere do."""


@dataclass(frozen=True)
class Faithfulness:
    """The verdict on a direction at a site, and the numbers behind it.

    `faithful`: the part that is read has the effect. `dormant path`: it has not, so the effect
    needs a part that by itself reaches nothing. `other readers`: the part that the named readers
    cannot see has the effect by itself, through others. `no effect`: patching the direction does
    little, or no more than a random one. `vacuous`: every direction is read, so nothing is tested.
    """

    verdict: Verdict
    rank: int
    """Of the readers: the dimension of what they can see."""
    dimension: int
    """D, of the site."""
    read: float
    """Length of the unit direction's part that is read."""
    unread: float
    """Length of the rest."""
    alignment: float
    """Cosine of the unread part with the mean difference of source and base activations: near 1
    where what varies with the concept is disconnected."""
    spread: float
    """Variance along the read part over the mean variance of a dimension: near 0 is dormant."""
    separation: float
    """Distance of the two means along the read part, in standard deviations within."""
    reach: float
    """How far the patch carries activations along the read part from their mean, in standard
    deviations of real ones, mean over pairs; above 4 or so it leaves what the model ever sees."""
    effects: Mapping[str, Effect]
    """Of patching the `direction`; its `read` and `unread` parts, each as a direction of its own;
    `read as part` and `unread as part`, their own contribution to the direction's patch; the
    `whole` site; and `random`, the strongest of eight random moves as long as the direction's."""


def split(direction: Tensor, readers: Tensor) -> tuple[Tensor, Tensor, int]:
    """The parts (D,) of a direction that linear readers (R, D) can and cannot see; their rank.

    float64. The parts are orthogonal and add up to `direction`; `readers @ unread` is 0.
    """
    rows, direction = readers.double(), direction.double()
    if len(rows) > rows.shape[1]:
        rows = torch.linalg.qr(rows, mode="r").R
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    kept = values > _RANK**2 * values[-1].clamp_min(1e-300)
    # Orthonormal rows that span the same space.
    basis = (vectors[:, kept] / values[kept].sqrt()).T @ rows
    read = basis.T @ (basis @ direction)
    return read, direction - read, int(kept.sum())


def moved(base: Tensor, source: Tensor, direction: Tensor) -> Tensor:
    """(N, D): `base` with its component along `direction` (D,) taken from `source`."""
    length = direction.square().sum().clamp_min(1e-300)
    return base + ((source - base) @ direction / length).unsqueeze(1) * direction


def measure(
    downstream: Downstream,
    base: Tensor,
    source: Tensor,
    source_scores: Tensor,
    direction: Tensor,
    readers: Tensor,
    *,
    rng: Generator,
) -> Faithfulness:
    """Patch a direction and its parts from source into base prompts, and judge.

    Args:
        downstream: runs a base prompt on from the site.
        base: (N, D) activations at the site.
        source: (N, D) those of each one's partner.
        source_scores: (N,) scores of the partners as they are.
        direction: (D,) of any length.
        readers: (R, D) the linear maps that read the site.
        rng: draws the random directions.
    """
    base, source = base.double(), source.double()
    unit = direction.double() / direction.double().norm()
    read, unread, rank = split(unit, readers)
    whole = moved(base, source, unit)
    patches = {
        "base": base,
        "direction": whole,
        "read": moved(base, source, read),
        "unread": moved(base, source, unread),
        "read as part": base + ((whole - base) @ unit).unsqueeze(1) * read,
        "unread as part": base + ((whole - base) @ unit).unsqueeze(1) * unread,
        "whole": source,
    }
    lengths = (whole - base).norm(dim=1, keepdim=True)
    for draw in range(_RANDOM):
        noise = torch.randn(len(unit), generator=rng, dtype=torch.float64)
        patches[f"random {draw}"] = base + lengths * noise / noise.norm()
    stacked = torch.stack(list(patches.values()), dim=1)
    rows = [downstream(index, stacked[index]).double().cpu() for index in range(len(base))]
    scores = dict(zip(patches, torch.stack(rows, dim=1), strict=True))
    effects = {
        name: _effect(scores["base"], found, source_scores.double())
        for name, found in scores.items()
        if name != "base"
    }
    noise_effects = [effects.pop(f"random {draw}") for draw in range(_RANDOM)]
    effects["random"] = max(noise_effects, key=lambda effect: abs(effect.share))
    along = read / read.norm().clamp_min(1e-12)
    real = torch.cat([base, source])
    deviation = (real @ along).std().clamp_min(1e-12)
    within = torch.stack([(base @ along).var(), (source @ along).var()]).mean().sqrt()
    difference = source.mean(0) - base.mean(0)
    return Faithfulness(
        verdict=_verdict(effects, rank, len(unit), float(unread.norm())),
        rank=rank,
        dimension=len(unit),
        read=float(read.norm()),
        unread=float(unread.norm()),
        alignment=float(torch.cosine_similarity(unread, difference, dim=0)),
        spread=float((real @ along).var() / real.var(0).mean().clamp_min(1e-12)),
        separation=float((difference @ along).abs() / within.clamp_min(1e-12)),
        reach=float((((whole - real.mean(0)) @ along).abs() / deviation).mean()),
        effects=effects,
    )


def _effect(base: Tensor, patched: Tensor, source: Tensor) -> Effect:
    gap = source.mean() - base.mean()
    share = (patched.mean() - base.mean()) / (gap if abs(float(gap)) > 1e-9 else 1e-9)
    differ = (base > 0) != (source > 0)
    flipped = (patched > 0) == (source > 0)
    flips = float(flipped[differ].double().mean()) if differ.any() else None
    return Effect(float(share), flips)


def _verdict(effects: Mapping[str, Effect], rank: int, dimension: int, unread: float) -> Verdict:
    whole, all_of_it = effects["direction"].share, effects["whole"].share
    if rank == dimension or unread < _PART:
        return "vacuous"
    if whole <= 0 or whole < OF_WHOLE * all_of_it or whole <= abs(effects["random"].share):
        return "no effect"
    if effects["read"].share >= OF_DIRECTION * whole:
        return "faithful"
    return "other readers" if effects["unread"].share >= OF_DIRECTION * whole else "dormant path"


@torch.no_grad()
def mlp_faithfulness(
    model: Model,
    train: tuple[Sequence[str], Sequence[str]],
    test: tuple[Sequence[str], Sequence[str]],
    token_ids: Tensor,
    *,
    rng: Generator,
) -> list[Faithfulness]:
    """The refusal direction inside each block's MLP, where the output projection is all that reads.

    The direction of a block is the difference in means of its `mlp_post` at the last token, over
    the training prompts; it is patched from harmful test prompts into harmless ones.

    Args:
        model: the model.
        train: harmful and harmless texts.
        test: harmful texts, and a harmless partner for each; the first 16 pairs are used.
        token_ids: (K,) refusal openers; their log odds are the score.
        rng: draws random directions.

    Raises:
        BadInput: no pairs, or a family whose MLPs have no known output projection.
    """
    harmful, harmless = (list(texts)[:_MOST_PAIRS] for texts in test)
    if not harmful or len(harmful) != len(harmless):
        raise BadInput(f"patching needs pairs, got {len(harmful)} and {len(harmless)} texts")
    sites = [Site(layer, "mlp_post") for layer in range(model.n_layers)]
    high, low = (last_token(model, texts, sites, share=True) for texts in train)
    source, base = (last_token(model, texts, sites, share=True) for texts in (harmful, harmless))
    scores = refusal_score(next_token_log_probs(model, harmful, share=True), token_ids)
    prompts = [model.plain(text) for text in harmless]
    # Nothing before the last position changes, so every run of a prompt shares it.
    prefixes = [model.prefix(prompt.ids[:-1], roles=prompt.roles[:-1]) for prompt in prompts]
    found = []
    for site in sites:

        def downstream(index: int, rows: Tensor, site: Site = site) -> Tensor:
            ids = prompts[index].ids
            read = Site(-1, "logits", (len(ids) - 1,))
            trace = model.trace(
                ids[-1:].expand(len(rows), 1),
                [read],
                prefix=prefixes[index],
                interventions=[ReplaceLast(site, rows)],
            )
            return refusal_score(trace[read][:, 0].float().cpu().log_softmax(1), token_ids)

        projection = at_path(model.hf, model.structure.module_path(site.layer, site.name))
        weight = projection.weight.detach().float().cpu()
        # Linear keeps (out, in), GPT-2's Conv1D (in, out).
        readers = weight if isinstance(projection, torch.nn.Linear) else weight.T
        direction = high[site].double().mean(0) - low[site].double().mean(0)
        found.append(
            measure(downstream, base[site], source[site], scores, direction, readers, rng=rng)
        )
    return found


@dataclass(frozen=True, eq=False)
class ReplaceLast(Intervention):
    """Puts a row into the last position of each sequence."""

    site: Site
    rows: Tensor
    """(B, D); gradients flow to it."""

    @property
    def sites(self) -> tuple[Site, ...]:
        return (self.site,)

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        changed = activation.clone()
        changed[:, -1] = self.rows.to(activation.device, activation.dtype)
        return changed
