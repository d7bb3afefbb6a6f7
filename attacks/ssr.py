"""Subspace rerouting: a suffix that carries the activations out of the refusal subspace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Generator

from attacks.attack import Artefact, Attack, Behavior, State, Step, ThreatModel
from attacks.core.errors import BadInput
from attacks.core.objectives import ProbeLoss
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
    """Probed blocks (their outputs); none: those of the middle third whose probe is reliable."""
    buffer: int = 10
    """See `CoordinateSearch.buffer`."""

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Fit a probe for each layer; `data` holds accuracies and the layers chosen.

        Raises:
            BadInput: a layer that the model does not have, or whose probe is under 0.9 on held-out
                prompts, or no layer with a better one.
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
        if (self.layers and reliable != self.layers) or not reliable:
            listed = ", ".join(f"{at}: {probe.accuracy:.2f}" for at, probe in probes.items())
            raise BadInput(
                f"ssr-probe: held-out accuracy of the probes on '{model.name}' must be at least "
                f"{_LEAST_ACCURACY} (by layer: {listed}); choose other layers"
            )
        tensors = {f"weight.{at}": probes[at].weight for at in reliable}
        tensors |= {f"bias.{at}": probes[at].bias for at in reliable}
        accuracy = {str(at): probe.accuracy for at, probe in probes.items()}
        return Artefact(tensors, {"layers": list(reliable), "accuracy": accuracy})

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
        search = CoordinateSearch(self.steps, self.width, self.topk, buffer=self.buffer)
        for prompts, loss, reached in search_suffix(
            search,
            ProbeLoss(tuple(artefact.data["layers"])),
            model,
            behavior,
            slots=self.slots,
            artefact=artefact,
            rng=rng,
            state=state,
        ):
            yield Step(prompts, loss=loss, state=reached)
