"""Subspace rerouting: a suffix that carries the activations out of the refusal subspace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Generator

from attacks.attack import Artefact, Attack, Behavior, State, Step, ThreatModel
from attacks.core.errors import BadInput
from attacks.core.objectives import ProbeLoss, Stability
from attacks.core.probes import fit_probe
from attacks.core.search import CoordinateSearch, search_suffix
from attacks.core.sites import Site
from attacks.core.states import last_token

if TYPE_CHECKING:
    from attacks.core.model import Model

_LEAST_ACCURACY = 0.9


@dataclass(frozen=True)
class ProbeSSR(Attack):
    """SSR with linear probes (arXiv 2503.06269, section 3).

    Probes tell harmful from harmless training prompts by the last token's residual stream; the
    suffix is searched so that they say harmless. No target string is needed, and the forward pass
    stops after the deepest layer probed.
    """

    name: ClassVar[str] = "ssr-probe"
    summary: ClassVar[str] = (
        "subspace rerouting: a suffix that the model's own probes call harmless"
    )
    threat_model: ClassVar[ThreatModel] = ThreatModel.PROMPT
    needs_train: ClassVar[bool] = True

    steps: int = 32
    width: int = 128
    """Candidates drawn in each step."""
    topk: int = 64
    """Tokens of each slot that the gradient puts up for choice."""
    slots: int = 4
    """Length of the suffix in tokens; fewer slots keep more of the request's content."""
    layers: tuple[int, ...] = ()
    """Probed blocks (their outputs); none: the reliable ones of the middle third, or the best."""
    stability: float = 0.0
    """Weight of `Stability`, which keeps what else the prompt says."""
    buffer: int = 10
    """See `CoordinateSearch.buffer`."""

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Fit a probe for each layer; `data` holds accuracies and the layers chosen.

        Raises:
            BadInput: a layer asked for that the model does not have, or whose probe is right on
                less than 0.9 of held-out prompts.
        """
        for layer in self.layers:
            if not 0 <= layer < model.n_layers:
                raise BadInput(f"ssr-probe: layer {layer} is not in 0..{model.n_layers - 1}")
        third = model.n_layers / 3
        middle = [at for at in range(model.n_layers) if third <= at + 1 <= 2 * third + 0.5]
        wanted = self.layers or middle
        sites = {layer: Site(layer, "resid_post") for layer in wanted}
        states = [
            last_token(model, [b.text for b in train if b.harmful == harmful], [*sites.values()])
            for harmful in (True, False)
        ]
        probes = {
            layer: fit_probe(states[0][site], states[1][site], rng=rng)
            for layer, site in sites.items()
        }
        reliable = tuple(at for at in wanted if probes[at].accuracy >= _LEAST_ACCURACY)
        if self.layers and reliable != self.layers:
            listed = ", ".join(f"{at}: {probe.accuracy:.2f}" for at, probe in probes.items())
            raise BadInput(
                f"ssr-probe: held-out accuracy of the probes on '{model.name}' must be at least "
                f"{_LEAST_ACCURACY} (by layer: {listed}); choose other layers"
            )
        best = max(wanted, key=lambda at: probes[at].accuracy)
        layers = reliable or (best,)
        tensors = {f"weight.{at}": probes[at].weight for at in layers}
        tensors |= {f"bias.{at}": probes[at].bias for at in layers}
        accuracy = {str(at): probe.accuracy for at, probe in probes.items()}
        return Artefact(tensors, {"layers": list(layers), "accuracy": accuracy})

    def run(
        self,
        model: Model,
        behavior: Behavior,
        *,
        artefact: Artefact,
        rng: Generator,
        state: State | None = None,
    ) -> Iterator[Step]:
        """One step for each round of gradient, candidates and choice."""
        layers = tuple(artefact.data["layers"])
        objective = ProbeLoss(layers) + self.stability * Stability(layers)
        search = CoordinateSearch(self.steps, self.width, self.topk, buffer=self.buffer)
        for prompts, loss, reached in search_suffix(
            search,
            objective,
            model,
            behavior,
            slots=self.slots,
            artefact=artefact,
            rng=rng,
            state=state,
        ):
            yield Step(prompts, loss=loss, state=reached)
