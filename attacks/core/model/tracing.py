"""One forward pass on nnsight: read some sites, change others, stop after the deepest read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from nnsight import NNsight
from torch import Tensor, nn
from transformers import DynamicCache

from attacks.core.interventions import Context, Intervention
from attacks.core.model import routing
from attacks.core.model.attention import recording
from attacks.core.model.families import Structure, at_path
from attacks.core.model.hooks import by_site
from attacks.core.prompt import ANSWER, GENERATED
from attacks.core.sites import ATTENTION_WEIGHTS, ROUTING, Site, Trace
from attacks.core.weights import Change


@dataclass(frozen=True, eq=False)
class Frame:
    """Where sequences of different lengths stand in a pass over all of them (see `joint`)."""

    mask: Tensor
    """(B, P + T) 1 at what may be attended to: P cached positions and the T of the pass."""
    positions: Tensor
    """(B, T) of the tokens in their own sequences, the last one's at padding."""
    real: Tensor
    """(B, T) false at padding."""
    head: Tensor
    """(B, N) which of the T have logits: the pass gives them as if they were its positions 0 to N.
    """


@dataclass(frozen=True, eq=False)
class Pass:
    """A forward pass to run: the inputs (B, T, D) and what surrounds them."""

    embeds: Tensor
    cache: DynamicCache | None = None
    past: int = 0
    """Positions in the cache."""
    interventions: Sequence[Change] = ()
    roles: Tensor | None = None
    """(B, T); ANSWER at the tokens of an answer, which is given whole."""
    frame: Frame | None = None
    """None: all sequences are equally long, and nothing is padded."""


@dataclass(frozen=True)
class Plan:
    """Which places a pass visits, in the order in which they are computed."""

    places: tuple[Site, ...]
    reads: Mapping[Site, list[Site]]
    """The wanted sites by place (site without positions)."""
    changes: Mapping[Site, list[Intervention]]
    head: tuple[int, ...] = field(default=())
    """Positions whose logits are needed, counted after the cache."""
    layers: int = 0
    """Blocks that run."""


def plan(
    reads: Sequence[Site], interventions: Sequence[Change], *, past: int, n_layers: int
) -> Plan:
    """Order the places of a pass; the deepest read decides where it ends."""
    wanted: dict[Site, list[Site]] = {}
    for site in reads:
        wanted.setdefault(Site(site.layer, site.name), []).append(site)
    changes = by_site(interventions)
    deepest = max(place.depth(n_layers) for place in wanted)
    places = sorted(
        (place for place in {**wanted, **changes} if place.depth(n_layers) <= deepest),
        key=lambda place: place.depth(n_layers),
    )
    head = {p - past for site in reads if site.name == "logits" for p in site.positions}
    return Plan(tuple(places), wanted, changes, tuple(sorted(head)), min(deepest[0] + 1, n_layers))


def run(envoy: NNsight, structure: Structure, work: Pass, plan: Plan) -> Trace:
    """Run the pass; only the rows at each site's positions are kept.

    Sites are visited inside one nnsight trace in forward order, as it requires. Interventions come
    before reads, so a read sees what the rest of the model sees.

    Raises:
        BadInput: a site that this family does not have, or whose attention cannot be recorded.
    """
    trace: Trace = {}
    embeds = _embedded(work, plan, trace)
    places = [place for place in plan.places if place.name != "embed"]
    if not places:
        return trace
    arguments: dict[str, Any] = {
        "inputs_embeds": embeds,
        "past_key_values": work.cache,
        "use_cache": work.cache is not None,
    }
    with ExitStack() as stack:
        if work.frame is not None:
            arguments |= {"attention_mask": work.frame.mask, "position_ids": work.frame.positions}
            stack.enter_context(_heading(envoy._module, work.frame.head))
        elif plan.head:
            # The unembedding is applied to these positions only.
            arguments["logits_to_keep"] = torch.tensor(plan.head, device=embeds.device)
        _visit(envoy, structure, work, plan, places, arguments, trace)
    return trace


@contextmanager
def _heading(model: Any, columns: Tensor) -> Iterator[None]:
    """Inside the block the unembedding is applied to the positions `columns` (B, N) of (B, T)."""

    def chosen(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (hidden, *rest) = args
        at = columns.to(hidden.device).unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        return (hidden.gather(1, at), *rest)

    hook = model.get_output_embeddings().register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        hook.remove()


def _visit(
    envoy: NNsight,
    structure: Structure,
    work: Pass,
    plan: Plan,
    places: Sequence[Site],
    arguments: Mapping[str, Any],
    trace: Trace,
) -> None:
    """Run the model on `arguments`, and put into `trace` what is read at the `places`."""
    if all(place.name == "logits" and place not in plan.changes for place in places):
        # The model's output as it is: nothing to wait for, and nnsight costs a millisecond a pass.
        logits = envoy._module(**arguments).logits
        for site in plan.reads[places[0]]:
            trace[site] = _rows(logits, site, work, plan.head)
        return
    paths = {
        place: structure.module_path(place.layer, place.name)
        for place in places
        if place.name != "logits"
    }
    selections = {
        place: routing.selection_of(envoy._module, structure, place.layer)
        for place in places
        if place.name in ROUTING
    }
    with ExitStack() as stack:
        recorded = [place.layer for place in places if place.name in ATTENTION_WEIGHTS]
        model = envoy._module
        recorder = stack.enter_context(recording(model, structure, recorded)) if recorded else None
        with envoy.trace(**arguments) as tracer:
            for place in places:
                rows = None
                if place.name == "logits":
                    value = envoy.output.logits
                    rows = plan.head
                else:
                    module = at_path(envoy, paths[place])
                    if place.name in ("resid_pre", "z", "mlp_post", *ATTENTION_WEIGHTS):
                        # For scores and pattern it only waits until they have been computed.
                        whole = module.input
                    else:
                        whole = module.output
                    value = structure.value(place.name, whole)
                if place.name == "z":
                    value = structure.by_head(value)
                elif place.name in ROUTING:
                    value = routing.read(place.name, whole, len(work.embeds))
                elif recorder is not None and place.name in ATTENTION_WEIGHTS:
                    attention = at_path(model, structure.attention_path(place.layer))
                    value = recorder.value(attention, place.name)
                if place in plan.changes:
                    context = _context(place, work, rows)
                    for intervention in plan.changes[place]:
                        value = intervention(value, context)
                    if place.name in ("resid_pre", "mlp_post"):
                        module.input = value
                    elif place.name == "z":
                        module.input = value.flatten(2)
                    elif place.name in ROUTING:
                        new = routing.write(place.name, whole, value, selections[place])
                        module.output = new
                    elif place.name != "logits":
                        module.output = structure.with_value(place.name, whole, value)
                for site in plan.reads.get(place, ()):
                    trace[site] = _rows(value, site, work, rows)
            if not plan.head:
                tracer.stop()


def _rows(value: Tensor, site: Site, work: Pass, computed: Sequence[int] | None) -> Tensor:
    """What is at the site's positions, of `value` at all of the pass or at those `computed`."""
    positions = [p - work.past for p in site.positions]
    if computed is None:
        return value[:, positions]  # A copy: some families add to such a value in place later.
    at = [computed.index(p) for p in positions]
    return value if at == list(range(len(computed))) else value[:, at]


def _embedded(work: Pass, plan: Plan, trace: Trace) -> Tensor:
    """The inputs (B, T, D), changed and read at the site `embed`.

    The model is given embeddings, so its embedding module does not run.
    """
    place, embeds = Site(-1, "embed"), work.embeds
    for intervention in plan.changes.get(place, ()):
        embeds = intervention(embeds, _context(place, work, None))
    for site in plan.reads.get(place, ()):
        trace[site] = embeds[:, [p - work.past for p in site.positions]]
    return embeds


def _context(place: Site, work: Pass, rows: Sequence[int] | None) -> Context:
    """What an intervention is told; `rows` are the positions computed, if not all."""
    if work.frame is not None:
        return _framed(place, work, work.frame, None if rows is None else work.frame.head)
    at = torch.arange(work.embeds.shape[1]) if rows is None else torch.tensor(rows)
    positions = (at + work.past).to(work.embeds.device).expand(len(work.embeds), -1)
    if work.roles is None:
        return Context(place, 0, None, None, positions)
    given = work.roles == ANSWER
    roles, steps = work.roles.masked_fill(given, GENERATED), given.cumsum(1)
    if rows is not None:
        roles, steps = roles[:, list(rows)], steps[:, list(rows)]
    return Context(place, 0, roles, None, positions, steps)


def _framed(place: Site, work: Pass, frame: Frame, columns: Tensor | None) -> Context:
    """`_context` where sequences differ in length.

    (B, N) `columns` are those of the positions that are computed, if not all are.
    """

    def at(values: Tensor) -> Tensor:
        return values if columns is None else values.gather(1, columns)

    real, positions = at(frame.real), at(frame.positions.masked_fill(~frame.real, -1))
    if work.roles is None:
        return Context(place, 0, None, real, positions)
    given = work.roles == ANSWER
    roles, steps = at(work.roles.masked_fill(given, GENERATED)), at(given.cumsum(1))
    return Context(place, 0, roles, real, positions, steps)
