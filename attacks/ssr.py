"""Subspace rerouting: a suffix that moves the activations out of the refusal subspace."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Generator

from attacks.attack import Artefact, Behavior, Pursuit, SuffixAttack
from attacks.core.analysis.latent_aim import aim_at_latents
from attacks.core.analysis.latents import Autoencoding
from attacks.core.analysis.survey import Survey, choose_heads, choose_layers, reads_sets, survey
from attacks.core.artefact import join_checks
from attacks.core.objectives import (
    AttentionLoss,
    LatentLoss,
    Objective,
    ProbeLoss,
    SteeringLoss,
    SubspaceNorm,
    TargetCrossEntropy,
)
from attacks.core.prompt import suffixed
from attacks.core.refusals.harmfulness import harm_directions, refusal_bases
from attacks.core.refusals.own_answers import GIVEN, OWN, OwnAnswers
from attacks.core.search import CoordinateSearch

if TYPE_CHECKING:
    from attacks.core.model import Model

#: How far towards harmless prompts an activation is taken for that of a harmless one.
_FAR = 0.75


@dataclass(frozen=True)
class SubspaceRerouting(SuffixAttack):
    """Common part of the variants of SSR (arXiv 2503.06269); a variant is its objective.

    The objective reads activations of the prompt only, needs no target string, and its forward
    passes stop after the deepest layer read. By itself it accepts a suffix that makes the model
    think of another, harmless request. So the prompt is kept on the request by the answer that the
    model itself gives with its refusal direction ablated (`keep`); keep="none" is the method as
    published.
    """

    needs_train: ClassVar[bool] = True

    steps: int = 16
    buffer: int = 10
    """How many of the best fillings are kept; the search goes on from the best."""
    early_stop: float | None = 0.01
    """Loss of its own answer at which the model gives it; after a given target, which it may say
    and then refuse, it is asked whether it does."""
    keep: Literal["then", "with", "rank", "none"] = "then"
    """How the answer is used: minimised once the objective is at most `enough`, or half of the
    steps are over (on some models the objective stays far out of reach); added to the objective
    with `weight`; used to rank the final candidates; or not at all."""
    answer: Literal["own", "given"] = "own"
    """The model's own answer with refusal ablated (the first that is neither a refusal nor garbled:
    by the fitted subspace, if there is one, then by the direction, then decoded past its refusal,
    with the behaviour's target as the last resort; see `OwnAnswers`), or always the behaviour's
    target."""
    tokens: int = 40
    """Maximum length of the model's own answer, in tokens."""
    enough: float | None = 0.2
    """Loss at which the objective counts as reached, with keep="then"."""
    weight: float = 1.0
    """Of the answer's loss, with keep="with"."""
    ranked: int = 32
    """Candidates to rank, with keep="rank"."""

    @abstractmethod
    def aim(self, model: Model, found: Survey, train: Sequence[Behavior]) -> Artefact:
        """What the objective reads, chosen from what the survey of the model has found."""

    @abstractmethod
    def objective(self, artefact: Artefact) -> Objective:
        """The distance to the subspace that is minimised."""

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Survey the model and aim; `data` holds what was found and what was chosen.

        Raises:
            BadInput: as `survey`, `choose_layers` and `choose_heads`.
        """
        return self.fitted(model, survey(model, train, rng=rng), train)

    def fitted(self, model: Model, found: Survey, train: Sequence[Behavior]) -> Artefact:
        """The artefact, from a survey that is there already.

        Raises:
            BadInput: as `choose_layers` and `choose_heads`.
        """
        aimed = self.aim(model, found, train)
        own = {name: found.tensors[name] for name in OWN if name in found.tensors}
        parts = {"own answer": found.check, "aim": aimed.check}
        check = join_checks(parts) if aimed.check else dict(found.check)
        if reads_sets(found):
            note = "the probes separate the training sets as well after the first block as anywhere"
            check["notes"] = [*check.get("notes", ()), note]
        return Artefact({**aimed.tensors, **own}, {**found.data, **aimed.data}, check=check)

    def search(self) -> CoordinateSearch:
        """As every suffix search, with more candidates kept where they are ranked."""
        search = super().search()
        return replace(search, keep=self.ranked) if self.keep == "rank" else search

    def pursuit(self, model: Model, behavior: Behavior, artefact: Artefact) -> Pursuit:
        """The subspace, and the answer in the way that `keep` says."""
        subspace, answer = self.objective(artefact), TargetCrossEntropy()
        if self.keep == "none":
            return Pursuit(subspace, behavior.affirmative)
        own = OwnAnswers.of(artefact.tensors, artefact.data, model.n_layers)
        target, source = behavior.affirmative, ""
        if self.answer == "own":
            target, source = own.target(model, behavior, tokens=self.tokens)
        given = source in ("", GIVEN)
        sure = partial(own.answered, model, behavior, tokens=self.tokens) if given else None
        if self.keep == "with":
            return Pursuit(subspace + self.weight * answer, target, source=source, sure=sure)
        if self.keep == "rank":
            return Pursuit(subspace, target, rank=answer, source=source)
        enough = self.threshold(artefact)
        within = max(1, self.steps // 2)
        return Pursuit(subspace, target, answer, enough, within=within, source=source, sure=sure)

    def threshold(self, artefact: Artefact) -> float:
        """The loss at which the objective counts as reached, with keep="then"."""
        return self.enough or 0.0


@dataclass(frozen=True)
class ResidualRerouting(SubspaceRerouting):
    """SSR towards a region of the residual stream at some layers."""

    layers: tuple[int, ...] = ()
    """Target blocks (their outputs); none: chosen from the survey (`choose_layers`)."""
    alphas: tuple[float, ...] = ()
    """Weight of each layer; none: all 1."""

    def aim(self, model: Model, found: Survey, train: Sequence[Behavior]) -> Artefact:
        """The layers, with the probe and the direction of each."""
        layers = choose_layers(found, self.layers, who=self.name)
        kinds = ("weight", "bias", "direction")
        names = [f"{kind}.{layer}" for layer in layers for kind in kinds]
        return Artefact({name: found.tensors[name] for name in names}, {"layers": list(layers)})


@dataclass(frozen=True)
class ProbeSSR(ResidualRerouting):
    """SSR (arXiv 2503.06269) with linear probes that separate harmful from harmless prompts."""

    name: ClassVar[str] = "ssr-probe"
    summary: ClassVar[str] = (
        "subspace rerouting (SSR): a suffix that linear probes classify as harmless"
    )

    def objective(self, artefact: Artefact) -> Objective:
        """The probes of the layers chosen."""
        return ProbeLoss(tuple(artefact.data["layers"]), self.alphas)


@dataclass(frozen=True)
class RefusalBasis:
    """The subspace of form="subspace"."""

    rank: int = 4
    """Number of directions."""


@dataclass(frozen=True)
class SteeringSSR(ResidualRerouting):
    """SSR (arXiv 2503.06269) with refusal directions, as in the authors' code or their paper."""

    name: ClassVar[str] = "ssr-steering"
    summary: ClassVar[str] = (
        "subspace rerouting (SSR): a suffix that steers against refusal directions"
    )

    enough: float | None = None
    """None: the loss of an activation `_FAR` of the way from harmful to harmless prompts."""
    form: Literal["cosine", "projection", "subspace"] = "cosine"
    """cosine: the code's distance; projection: the paper's (see `SteeringLoss`); subspace: the norm
    of the part of the activation in a subspace (`SubspaceNorm`)."""
    subspace: RefusalBasis = field(default_factory=RefusalBasis)
    """Of form="subspace"."""
    targets: tuple[float, ...] = ()
    """With form="cosine": minus the cosine aimed at in each layer, 0 to 1; none: all 1."""
    scale: float = -2.0
    """With form="projection": -1 removes the component along the direction, -2 reflects it."""
    stability: float = 0.0
    """With form="projection": weight of changes of the activation across the direction."""
    aimed: Literal["refusal", "harmfulness"] = "refusal"
    """The directions between harmful and harmless prompts at the last token, or those at the last
    token of the request, which the suffix moves into the suffix (arXiv 2507.11878)."""

    def aim(self, model: Model, found: Survey, train: Sequence[Behavior]) -> Artefact:
        """The layers, with the direction of each at the token aimed at."""
        aimed = super().aim(model, found, train)
        layers = aimed.data["layers"]
        if self.form == "subspace":
            bases = refusal_bases(model, train, layers, self.subspace.rank)
            return Artefact({**aimed.tensors, **bases}, aimed.data)
        if self.aimed == "refusal":
            return aimed
        return Artefact({**aimed.tensors, **harm_directions(model, train, layers)}, aimed.data)

    def objective(self, artefact: Artefact) -> Objective:
        """The directions, or the subspaces, of the layers chosen."""
        if self.form == "subspace":
            return SubspaceNorm(tuple(artefact.data["layers"]), self.alphas)
        return SteeringLoss(
            tuple(artefact.data["layers"]),
            self.alphas,
            self.form,
            self.targets,
            self.scale,
            self.stability,
            "last" if self.aimed == "refusal" else "instruction",
        )

    def threshold(self, artefact: Artefact) -> float:
        """Models differ in the cosine of a harmless prompt, so no one loss suits them all."""
        if self.enough is not None:
            return self.enough
        layers = artefact.data["layers"]
        ones = (1.0,) * len(layers)
        total = 0.0
        if self.form == "subspace":
            return _near_harmless(artefact, self.alphas or ones)
        for layer, weight, target in zip(
            layers, self.alphas or ones, self.targets or ones, strict=True
        ):
            harmful, harmless = artefact.data["survey"][layer]["cosines"]
            goal = -target if self.form == "cosine" else (1 + self.scale) * harmful
            passed = harmful + _FAR * (harmless - harmful)
            total += weight * (goal - passed) ** 2
        return total


def _near_harmless(artefact: Artefact, weights: Sequence[float]) -> float:
    """The loss with `_FAR` of the way gone: squared, what is left of it and harmless scatter."""
    rests = [float(artefact.tensors[f"rest.{layer}"]) for layer in artefact.data["layers"]]
    return sum(w * ((1 - _FAR) ** 2 + rest) for w, rest in zip(weights, rests, strict=True))


@dataclass(frozen=True)
class LatentSSR(ResidualRerouting):
    """SSR (arXiv 2503.06269) with the sparse latents of an autoencoder that mediate refusal.

    The latents are those that the refusal score of harmful prompts is attributed to, and the suffix
    drives their pre-activations to where harmless prompts have them (`LatentLoss`). An AbsTopK
    latent (arXiv 2510.00404) may stand for refusal with either sign.
    """

    name: ClassVar[str] = "ssr-latents"
    summary: ClassVar[str] = (
        "subspace rerouting (SSR): a suffix that suppresses the sparse latents that mediate refusal"
    )

    enough: float | None = None
    """None: the loss of an activation `_FAR` of the way from harmful to harmless prompts."""
    latents: Autoencoding = field(default_factory=Autoencoding)
    """How the autoencoder is fitted, or where it is."""

    def aim(self, model: Model, found: Survey, train: Sequence[Behavior]) -> Artefact:
        """The layers, with the latents of each that refuse, and the check of each."""
        layers = choose_layers(found, self.layers, who=self.name)
        aims = [aim_at_latents(model, train, layer, self.latents) for layer in layers]
        return Artefact(
            {name: value for aim in aims for name, value in aim.tensors.items()},
            {"layers": list(layers), "latents": [dict(aim.data) for aim in aims]},
            check=join_checks({f"layer {at}": a.check for at, a in zip(layers, aims, strict=True)}),
        )

    def objective(self, artefact: Artefact) -> Objective:
        """The latents of the layers chosen."""
        return LatentLoss(tuple(artefact.data["layers"]), self.alphas)

    def threshold(self, artefact: Artefact) -> float:
        """Harmless prompts scatter about 0, and so have a loss of their own."""
        if self.enough is not None:
            return self.enough
        return _near_harmless(artefact, self.alphas or (1.0,) * len(artefact.data["layers"]))


@dataclass(frozen=True)
class AttentionSSR(SubspaceRerouting):
    """SSR (arXiv 2503.06269) with the heads that mediate refusal: their attention is drawn away."""

    name: ClassVar[str] = "ssr-attention"
    summary: ClassVar[str] = (
        "subspace rerouting (SSR): a suffix that distracts the heads that mediate refusal"
    )

    enough: float | None = 1.0
    heads: tuple[tuple[int, int], ...] = ()
    """(layer, head) pairs; none: those whose patching transfers most of the refusal."""
    kind: Literal["dazzle", "dazzle-score", "ablation", "full-ablation"] = "dazzle"
    """See `AttentionLoss`."""
    last: int = 1
    """Number of positions at the end of the prompt that count."""

    def aim(self, model: Model, found: Survey, train: Sequence[Behavior]) -> Artefact:
        """The heads, with the effect of patching each.

        Raises:
            BadInput: as `choose_heads`, or a family in which what is minimised cannot be read.
        """
        heads, effects = choose_heads(model, train, self.heads)
        aimed = Artefact({"head_effects": effects}, {"heads": [list(head) for head in heads]})
        # Asked once here: every single search would fail for the same reason.
        prompt = model.prompt(suffixed(train[0], 1), rng=Generator().manual_seed(0))
        bound = AttentionLoss(heads, self.kind).bind(model, prompt, aimed)
        model.trace(prompt.ids.unsqueeze(0), bound.reads)
        return aimed

    def objective(self, artefact: Artefact) -> Objective:
        """The attention of the heads chosen."""
        heads = tuple((int(layer), int(head)) for layer, head in artefact.data["heads"])
        return AttentionLoss(heads, self.kind, self.last)
