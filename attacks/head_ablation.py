"""Head ablation: scale down the attention heads that mediate refusal, or their opponents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Generator

from attacks.attack import Artefact, Behavior, ChangeAttack
from attacks.core.analysis.heads import (
    refusal_axis,
    sides,
    strongest,
    traced_for_refusal,
    written_for_refusal,
)
from attacks.core.analysis.transcripts import transcribe
from attacks.core.errors import BadInput
from attacks.core.interventions import ScaleHeads
from attacks.core.refusals.verdicts import hold_out
from attacks.core.weights import Change

if TYPE_CHECKING:
    from attacks.core.model import Model

#: Training behaviours of a kind that are answered, and how many of a kind there must be.
_ANSWERED, _LEAST = 64, 4


@dataclass(frozen=True)
class HeadAblation(ChangeAttack):
    """Ablation of attention heads (arXiv 2510.06036, section 4) at every position.

    Heads are ranked by what they write, at the last token before the answer, along the direction
    from answered to refused training prompts. `suppress` ablates those that write most along it, a
    bypass; `restore` those that write most against it, which the paper finds to make a reasoning
    model refuse again, and so is a defence. The model's thinking is left to it.
    """

    name: ClassVar[str] = "head-ablation"
    summary: ClassVar[str] = "ablates the attention heads that mediate refusal"
    needs_train: ClassVar[bool] = True

    direction: Literal["suppress", "restore"] = "suppress"
    """Whether refusal is to be suppressed or restored."""
    heads: tuple[tuple[int, int], ...] = ()
    """(layer, head) to ablate; none: chosen by score."""
    share: float = 0.1
    """Share of all heads that is chosen: at least one head (the paper: 0.015, 0.03 and 0.1)."""
    gamma: float = 0.0
    """Factor on their outputs."""
    layer: int | None = None
    """Block whose output gives the direction; none: the last."""
    rank: Literal["projection", "trace"] = "projection"
    """Rank by what heads write, or by the effect of scaling each down; see `analysis.heads`."""
    keep_norm: bool = False
    """Let a layer's heads keep their norm together, as in the paper's code."""

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Rank the heads; `data` holds those to ablate, `tensors` the scores (L, H) of all.

        Raises:
            BadInput: a head or layer that the model does not have, a share that is none, or too few
                training behaviours.
        """
        layer = model.n_layers - 1 if self.layer is None else self.layer
        if not 0 <= layer < model.n_layers:
            raise BadInput(f"head-ablation: layer {layer} is not in 0..{model.n_layers - 1}")
        if not 0 < self.share <= 1:
            raise BadInput(f"head-ablation: share {self.share} is not above 0 and at most 1")
        total = model.structure.heads
        for at, head in self.heads:
            if not (0 <= at < model.n_layers and 0 <= head < total):
                last = f"({model.n_layers - 1}, {total - 1})"
                raise BadInput(f"head-ablation: head ({at}, {head}) is not in (0, 0)..{last}")
        if self.heads:
            return Artefact(data={"heads": [list(head) for head in self.heads]})
        fit, held_out = hold_out(train, rng, who=self.name)
        kinds = ([b for b in fit if b.harmful == flag][:_ANSWERED] for flag in (True, False))
        transcripts = transcribe(model, [behavior for rows in kinds for behavior in rows])
        refused, answered = sides(transcripts, least=_LEAST)
        axis = refusal_axis(model, refused, answered, layer)
        restore = self.direction == "restore"
        # What works against refusal is at work where something harmful was answered.
        lost = [t for t in answered if t.harmful] if restore else []
        read_on = lost or refused
        if self.rank == "trace":
            scores = traced_for_refusal(model, read_on, axis, layer)
        else:
            scores = written_for_refusal(model, read_on, axis)
        count = max(1, round(self.share * scores.numel()))
        chosen = strongest(scores, count, against=restore)
        found = Artefact({"scores": scores}, {"heads": [list(head) for head in chosen]})
        return found if restore else self.checked(model, found, fit, held_out)

    def change(self, model: Model, artefact: Artefact) -> Change:
        """The heads scaled."""
        heads = tuple((layer, head) for layer, head in artefact.data["heads"])
        return ScaleHeads(heads, self.gamma, self.keep_norm)
