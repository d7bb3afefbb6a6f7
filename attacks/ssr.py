"""Subspace rerouting: a suffix that carries the activations out of the refusal subspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Generator

from attacks.attack import Artefact, Behavior, Pursuit, SuffixAttack
from attacks.core.directions import find_refusal_direction
from attacks.core.errors import BadInput
from attacks.core.interventions import AblateDirection
from attacks.core.objectives import ProbeLoss, TargetCrossEntropy
from attacks.core.probes import fit_probe
from attacks.core.sites import Site
from attacks.core.states import last_token

if TYPE_CHECKING:
    from attacks.core.model import Model

_LEAST_ACCURACY = 0.9
_ANSWER_TOKENS = 16


@dataclass(frozen=True)
class ProbeSSR(SuffixAttack):
    """SSR with linear probes (arXiv 2503.06269, section 3), kept to what was asked.

    Probes tell harmful from harmless training prompts by the last token's residual stream; the
    suffix is searched so that they say harmless, without a target string and with forward passes
    that stop after the deepest layer probed.

    The probe loss alone is content with a suffix that makes the model think of another, harmless
    request. So once the probes are satisfied (`enough`), the search goes on towards the answer that
    the model itself gives to the request with its refusal direction ablated. keep_request=false is
    the method as published.
    """

    name: ClassVar[str] = "ssr-probe"
    summary: ClassVar[str] = (
        "subspace rerouting: a suffix that the model's own probes call harmless"
    )
    needs_train: ClassVar[bool] = True

    steps: int = 16
    slots: int = 4
    buffer: int = 10
    layers: tuple[int, ...] = ()
    """Probed blocks (their outputs); none: the reliable ones around half depth, or the best."""
    enough: float = 0.5
    """Probe loss from which the request is looked after."""
    keep_request: bool = True
    """Whether there is a second stage, towards the model's own answer."""

    def prepare(self, model: Model, train: Sequence[Behavior], *, rng: Generator) -> Artefact:
        """Fit a probe for each layer, and the refusal direction; `data` holds what was chosen.

        Raises:
            BadInput: a layer asked for that the model does not have, or whose probe is right on
                less than 0.9 of held-out prompts; too few training behaviours.
        """
        for layer in self.layers:
            if not 0 <= layer < model.n_layers:
                raise BadInput(f"ssr-probe: layer {layer} is not in 0..{model.n_layers - 1}")
        depth = model.n_layers
        middle = [at for at in range(depth) if 0.4 <= (at + 1) / depth <= 0.7] or [depth // 2]
        wanted = self.layers or tuple(middle)
        sites = {layer: Site(layer, "resid_post") for layer in wanted}
        harmful, harmless = ([b.text for b in train if b.harmful == flag] for flag in (True, False))
        states = [last_token(model, texts, [*sites.values()]) for texts in (harmful, harmless)]
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
        layers = reliable or (max(wanted, key=lambda at: probes[at].accuracy),)
        tensors = {f"weight.{at}": probes[at].weight for at in layers}
        tensors |= {f"bias.{at}": probes[at].bias for at in layers}
        data: dict[str, Any] = {
            "layers": list(layers),
            "accuracy": {str(at): probe.accuracy for at, probe in probes.items()},
        }
        if self.keep_request:
            found = find_refusal_direction(model, harmful, harmless, rng=rng)
            tensors["direction"] = found.direction
            data["direction_layer"] = found.layer
        return Artefact(tensors, data)

    def pursuit(self, model: Model, behavior: Behavior, artefact: Artefact) -> Pursuit:
        """The probes, and then the model's own answer."""
        probes = ProbeLoss(tuple(artefact.data["layers"]))
        if not self.keep_request:
            return Pursuit(probes, behavior.affirmative)
        ablation = AblateDirection(artefact.tensors["direction"], model.n_layers)
        (answer,) = model.generate(
            [model.conversation(behavior.text)],
            max_new_tokens=_ANSWER_TOKENS,
            interventions=[ablation],
        )
        return Pursuit(
            probes, answer or behavior.affirmative, then=TargetCrossEntropy(), enough=self.enough
        )
