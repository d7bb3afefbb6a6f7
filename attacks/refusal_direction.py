"""The refusal direction: remove it from the activations or the weights, or add it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Generator

from attacks.attack import Artefact, Behavior, ChangeAttack, ThreatModel
from attacks.core.interventions import AblateDirection, AddDirection
from attacks.core.reading.massive import massive_activations
from attacks.core.reading.states import next_token_log_probs
from attacks.core.refusals.checked_direction import find_checked_direction
from attacks.core.refusals.choice import Purpose
from attacks.core.refusals.directions import direction_at, mean_kl
from attacks.core.refusals.verdicts import Examiner
from attacks.core.weights import Change, Orthogonalise

if TYPE_CHECKING:
    from attacks.core.model import Model

#: Training prompts of a kind that an edit is compared with ablation on.
_COMPARED = 32


@dataclass(frozen=True)
class RefusalDirection(ChangeAttack):
    """The difference-in-means refusal direction (Arditi et al. 2024, arXiv 2406.11717).

    Directions of all layers and of all template tokens after the request come from one part of the
    training prompts; one is chosen on the rest, by the refusal left after ablation among those that
    hardly change harmless prompts and induce refusal when added. To induce refusal, the choice is
    the one that does so most among those that remove it when ablated (`choose_direction`).
    """

    name: ClassVar[str] = "refusal-direction"
    summary: ClassVar[str] = "ablates the difference-in-means refusal direction, or adds it"
    needs_train: ClassVar[bool] = True

    layer: int | None = None
    """Block whose input gives the direction; none: chosen by score, with the position."""
    position: int = -1
    """With a layer: the token that gives it, counted from the end of the prompt."""
    max_kl: float = 0.1
    """KL on harmless prompts, in nats, above which a direction is used only as a last resort; see
    `choose_direction`."""
    mode: Literal["ablate", "add"] = "ablate"
    """Ablate it at every write of every layer, or add it at the input of its own layer."""
    coefficient: float = -1.0
    """With mode="add": factor in units of the measured direction; -1 bypasses refusal, +1 induces
    it."""
    winsorise: float = 1.0
    """Without a layer: quantile of a state's magnitudes at which values are clipped before the
    means are taken, against massive activations; 1 clips nothing."""

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Fit the direction; `data` holds where it is from and the scores of all.

        `refused` and `answered` are mean refusal scores of held-out harmful and harmless prompts;
        `massive` lists the directions that massive activations rule, which are left out of the
        choice, or, with a layer, such activations where the direction is read.

        Raises:
            BadInput: a layer or position that there is not, or too few training prompts.
        """
        return self.examined(model, train, rng=rng)[0]

    def examined(
        self, model: Model, train: Sequence[Behavior], *, rng: Generator
    ) -> tuple[Artefact, Examiner]:
        """What `prepare` gives, and what checks other uses of the direction on the same prompts."""
        if self.layer is not None:
            where = {"layer": self.layer, "position": self.position}
            harmful, harmless = (
                [b.text for b in train if b.harmful == flag] for flag in (True, False)
            )
            found = direction_at(model, harmful, harmless, **where)
            seen = massive_activations(model, [*harmful, *harmless], positions=[self.position])
            massive = [asdict(report) for report in seen if report.layer == self.layer]
            given = Artefact({"direction": found}, {**where, "massive": massive})
            # Nothing is held out: the layer is the user's choice, and all prompts serve the mean.
            examiner = Examiner(model, train, train)
            return self._checked(model, given, examiner), examiner
        purpose: Purpose = "induce" if self._induces else "ablate"
        best, check, examiner = find_checked_direction(
            model,
            train,
            rng=rng,
            max_kl=self.max_kl,
            purpose=purpose,
            winsorise=self.winsorise,
        )
        data = {
            "layer": best.score.layer,
            "position": best.score.position,
            "token": best.token,
            "given_up": list(best.given_up),
            "refused": best.refused,
            "answered": best.answered,
            "scores": [asdict(score) for score in best.scores],
            "massive": [asdict(report) for report in best.massive],
        }
        artefact = Artefact({"direction": best.direction}, data)
        if self.mode == "ablate":
            return replace(artefact, check=check.data), examiner
        return self._checked(model, artefact, examiner), examiner

    @property
    def _induces(self) -> bool:
        return self.mode == "add" and self.coefficient > 0

    def _checked(self, model: Model, artefact: Artefact, examiner: Examiner) -> Artefact:
        """`artefact` with its check, which has nothing to say of a direction that is to induce."""
        if self._induces:
            return artefact
        return replace(artefact, check=examiner.check([self.change(model, artefact)]).data)

    def change(self, model: Model, artefact: Artefact) -> Change:
        """The intervention with the direction."""
        direction = artefact.tensors["direction"]
        if self.mode == "add":
            return AddDirection(direction, artefact.data["layer"], self.coefficient)
        return AblateDirection(direction, model.n_layers)


@dataclass(frozen=True)
class RefusalDirectionWeights(ChangeAttack):
    """The refusal direction removed from all weights that write to the residual stream.

    Weight orthogonalisation (arXiv 2406.11717, section 4.1). It equals ablation at every write,
    except for families that apply a norm to a block's outputs (Gemma 2 and 3, OLMo 2, GLM-4), where
    it is an approximation; the artefact says so, and how far apart the two are.
    """

    name: ClassVar[str] = "refusal-direction-weights"
    summary: ClassVar[str] = "orthogonalises the weights to the refusal direction"
    threat_model: ClassVar[ThreatModel] = ThreatModel.WEIGHTS
    needs_train: ClassVar[bool] = True

    layer: int | None = None
    """Block whose input gives the direction; none: chosen by score, with the position."""
    position: int = -1
    """With a layer: the token that gives it, counted from the end of the prompt."""
    max_kl: float = 0.1
    """KL on harmless prompts, in nats, above which a direction is only a last resort."""
    winsorise: float = 1.0
    """As for `refusal-direction`: quantile at which a state's values are clipped."""

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Fit the direction as `refusal-direction` does, and compare the edit with ablation.

        `data` holds in addition `approximation`, whether the two differ by construction, and
        `kl_to_ablation`, mean KL(ablated || edited) of the first token in nats on training prompts.

        Raises:
            BadInput: as `refusal-direction`, or weights that cannot be edited.
        """
        fitted = RefusalDirection(self.layer, self.position, self.max_kl, winsorise=self.winsorise)
        found, examiner = fitted.examined(model, train, rng=rng)
        direction = found.tensors["direction"]
        groups = ([b.text for b in train if b.harmful == flag] for flag in (True, False))
        texts = [text for group in groups for text in group[:_COMPARED]]
        ablated, edited = (
            next_token_log_probs(model, texts, interventions=[change])
            for change in (AblateDirection(direction, model.n_layers), Orthogonalise(direction))
        )
        compared = {
            "approximation": model.structure.norms_outputs,
            "kl_to_ablation": mean_kl(ablated, edited),
        }
        check = examiner.check([self.change(model, found)]).data
        return replace(found, data={**found.data, **compared}, check=check)

    def change(self, model: Model, artefact: Artefact) -> Change:
        """The weights orthogonalised."""
        return Orthogonalise(artefact.tensors["direction"])
