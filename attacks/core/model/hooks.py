"""Interventions as plain PyTorch hooks, for generation.

Reading goes through nnsight; in a generation loop its bookkeeping for every layer of every token
costs more than the hooks themselves, so answers are generated with these. Both give the same
values (tests/core/test_interventions.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attacks.core.errors import BadInput
from attacks.core.interventions import Context, Intervention
from attacks.core.model import routing
from attacks.core.model.families import Structure, at_path
from attacks.core.prompt import GENERATED
from attacks.core.sites import ATTENTION_WEIGHTS, ROUTING, SITE_ORDER, Site
from attacks.core.weights import Change


def by_site(changes: Sequence[Change]) -> dict[Site, list[Intervention]]:
    """The interventions by site without positions, each list in the order given.

    Raises:
        BadInput: an intervention on a site that can only be read.
    """
    table: dict[Site, list[Intervention]] = defaultdict(list)
    for intervention in changes:
        if not isinstance(intervention, Intervention):
            continue
        for site in intervention.sites:
            if site.name in ATTENTION_WEIGHTS:
                raise BadInput(f"site '{site.name}' can be read but not changed; change 'z'")
            table[Site(site.layer, site.name)].append(intervention)
    return dict(table)


class _Step:
    """Counts the forward passes of a generation and knows the context of each."""

    def __init__(self, roles: Tensor | None, mask: Tensor | None) -> None:
        self.number = -1
        self.rows = 0
        """Sequences in the pass under way."""
        positions = None
        if mask is not None:
            positions = mask.long().cumsum(1).sub(1).masked_fill(~mask, -1)
        self._prompt = (roles, mask, positions)

    def advance(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.number += 1
        inputs = (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        self.rows = len(next(value for value in inputs if value is not None))

    def context(self, site: Site, activation: Tensor) -> Context:
        rows, new = activation.shape[:2]
        if self.number > 0:
            generated = torch.full((rows, new), GENERATED, device=activation.device)
            return Context(site, self.number, generated, None)
        # Logits are computed for the last positions only.
        roles, mask, positions = (
            None if value is None else value[:, -new:].to(activation.device)
            for value in self._prompt
        )
        return Context(site, self.number, roles, mask, positions)


@contextmanager
def intervening(
    model: nn.Module,
    structure: Structure,
    interventions: Sequence[Change],
    *,
    roles: Tensor | None,
    mask: Tensor | None,
) -> Iterator[None]:
    """Apply `interventions` to every forward pass inside the block; the hooks always come off.

    Args:
        model: the causal language model.
        structure: where its sites are.
        interventions: applied at each site in the order given; weight edits are in place already.
        roles: (B, T) roles of the prompt's positions.
        mask: (B, T) true at real tokens.
    """
    step = _Step(roles, mask)
    with ExitStack() as stack:
        if interventions:
            counting = model.register_forward_pre_hook(step.advance, with_kwargs=True)
            stack.callback(counting.remove)
        # Hooks of one module run in the order of registration.
        table = by_site(interventions)
        for site, group in sorted(table.items(), key=lambda item: SITE_ORDER.index(item[0].name)):
            stack.callback(_register(model, structure, site, group, step).remove)
        yield


def _register(
    model: nn.Module, structure: Structure, site: Site, group: list[Intervention], step: _Step
) -> Any:
    def changed(activation: Tensor) -> Tensor:
        context = step.context(site, activation)
        for intervention in group:
            activation = intervention(activation, context)
        return activation

    if site.name == "embed":

        def on_embeddings(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return changed(output)

        embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
        return embedding.register_forward_hook(on_embeddings)
    if site.name == "logits":

        def on_logits(module: nn.Module, args: Any, output: Any) -> Any:
            output.logits = changed(output.logits)
            return output

        return model.register_forward_hook(on_logits)
    module = at_path(model, structure.module_path(site.layer, site.name))
    if site.name == "resid_pre":

        def on_input(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                return (changed(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": changed(kwargs["hidden_states"])}

        return module.register_forward_pre_hook(on_input, with_kwargs=True)
    if site.name == "z":

        def on_heads(module: nn.Module, args: Any) -> Any:
            return (changed(structure.by_head(args[0])).flatten(2), *args[1:])

        return module.register_forward_pre_hook(on_heads)

    if site.name == "mlp_post":

        def on_hidden(module: nn.Module, args: Any) -> Any:
            return (changed(args[0]), *args[1:])

        return module.register_forward_pre_hook(on_hidden)
    if site.name in ROUTING:
        selection = routing.selection_of(model, structure, site.layer)

        def on_router(module: nn.Module, args: Any, output: Any) -> Any:
            value = changed(routing.read(site.name, output, step.rows))
            return routing.write(site.name, output, value, selection)

        return module.register_forward_hook(on_router)

    def on_output(module: nn.Module, args: Any, output: Any) -> Any:
        value = changed(structure.value(site.name, output))
        return structure.with_value(site.name, output, value)

    return module.register_forward_hook(on_output)
