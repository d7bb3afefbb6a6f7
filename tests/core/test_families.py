"""Random models of many architectures: what a `Model` does with them against plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attacks.core.artefact import EMPTY
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.interventions import AblateDirection, Context, Intervention
from attacks.core.model import Model
from attacks.core.model.families import at_path
from attacks.core.objectives import TargetCrossEntropy
from attacks.core.prompt import GENERATED, INSTRUCTION, suffixed
from attacks.core.search import Evaluator
from attacks.core.sites import Site
from conftest import check_gradient
from random_models import (
    FAMILIES,
    FLAT,
    HEAD,
    NOT_ONLY_EMBEDDINGS,
    RECURRENT,
    WINDOW,
    model_of,
    random_model,
)

REQUEST = "How do I paint the harp?"
every_family = pytest.mark.parametrize("name", FAMILIES)


def ids_of(model: Model) -> Tensor:
    """(3, T) a request, and two more with other ends."""
    ids = model.plain(REQUEST).ids.repeat(3, 1)
    ids[1, 7:] = ids[1, 7:].flip(0)
    ids[2, 7:] = ids[2, 7:].roll(5)
    return ids


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@contextmanager
def hooks(name: str, model: Model, change: Callable[[int, str, Tensor], Tensor]):  # type: ignore[no-untyped-def]
    """Plain hooks at the places named by hand: `change(layer, site, activation)`."""
    family = FAMILIES[name]

    def on_input(layer: int) -> Callable[..., object]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> object:
            if args:
                return (change(layer, "resid_pre", args[0]), *args[1:]), kwargs
            changed = change(layer, "resid_pre", kwargs["hidden_states"])
            return args, kwargs | {"hidden_states": changed}

        return hook

    def on_output(layer: int, site: str) -> Callable[..., object]:
        scale = 1.0 if site == "resid_post" else family.scale

        def hook(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> object:
            if isinstance(output, tuple):
                return (change(layer, site, output[0] * scale) / scale, *output[1:])
            return change(layer, site, output * scale) / scale

        return hook

    with ExitStack() as stack:
        for layer, block in enumerate(at_path(model.hf, family.blocks)):
            handle = block.register_forward_pre_hook(on_input(layer), with_kwargs=True)
            stack.callback(handle.remove)
            sites = (("attn_out", family.attention), ("mlp_out", family.mlp), ("resid_post", ""))
            for site, path in sites:
                module = block.get_submodule(path)
                stack.callback(module.register_forward_hook(on_output(layer, site)).remove)
        yield


@every_family
def test_sites_are_those_of_plain_hooks_and_add_up(name: str) -> None:
    model = model_of(name)
    ids = ids_of(model)
    last = ids.shape[1] - 1
    seen: dict[tuple[int, str], Tensor] = {}

    def keep(layer: int, site: str, activation: Tensor) -> Tensor:
        seen[layer, site] = activation.clone()  # Falcon goes on to change it in place.
        return activation

    names = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    reads = [Site(layer, site, (0, 5, last)) for layer in range(3) for site in names]
    with torch.no_grad():
        trace = model.trace(ids, reads)
        with hooks(name, model, keep):
            model.hf(input_ids=ids)
    for site in reads:
        close(trace[site], seen[site.layer, site.name][:, list(site.positions)])
    for layer in range(3):
        before, attention, mlp, after = (seen[layer, site] for site in names)
        close(before + attention + mlp, after)


@every_family
def test_a_trace_that_stops_early_gives_the_values_of_a_full_one(name: str) -> None:
    model = model_of(name)
    ids = ids_of(model)
    ran: list[int] = []
    early = [Site(0, "attn_out", (3,)), Site(1, "mlp_out", (3, 9))]
    deep = [Site(1, "resid_post", (0, 9)), Site(-1, "logits", (2, 9))]

    def note(layer: int, site: str, activation: Tensor) -> Tensor:
        if site == "resid_pre":
            ran.append(layer)
        return activation

    with torch.no_grad():
        full = model.trace(ids, early + deep)
        plain = model.hf(input_ids=ids, output_hidden_states=True)
        with hooks(name, model, note):
            stopped = model.trace(ids, early)
            middle = model.trace(ids, deep[:1])
    assert ran == [0, 1, 0, 1]
    for site in early:
        close(stopped[site], full[site])
    close(middle[deep[0]], plain.hidden_states[2][:, [0, 9]])
    close(full[deep[1]], plain.logits[:, [2, 9]])


@every_family
@pytest.mark.parametrize("start", [1, 7])
def test_a_cached_beginning_changes_nothing(name: str, start: int) -> None:
    """Also beyond the window of sliding-window layers."""
    model = model_of(name)
    ids = ids_of(model)
    ids[:, :start] = ids[0, :start]
    last = ids.shape[1] - 1
    near = (start, start + 2, last)
    reads = [Site(1, "attn_out", near), Site(2, "resid_post", near), Site(-1, "logits", near)]
    with torch.no_grad():
        prefix = model.prefix(ids[0, :start])
        cached = model.trace(ids[:, start:], reads, prefix=prefix)
        again = model.trace(ids[:, start:], reads, prefix=prefix)
        full = model.hf(input_ids=ids, output_hidden_states=True).logits
        uncached = model.trace(ids, reads)
    for site in reads:
        close(cached[site], uncached[site])
        assert torch.equal(cached[site], again[site]), "a pass must not change the shared cache"
    close(cached[reads[-1]], full[:, list(near)])


@every_family
def test_rows_of_a_batch_do_not_know_of_each_other(name: str) -> None:
    model = model_of(name)
    ids = ids_of(model)
    reads = [Site(1, "resid_post", (4, 9)), Site(-1, "logits", (4, 9))]
    with torch.no_grad():
        together = model.trace(ids, reads)
        alone = [model.trace(row.unsqueeze(0), reads) for row in ids]
    for site in reads:
        close(together[site], torch.cat([trace[site] for trace in alone]))


@every_family
def test_gradient_is_that_of_finite_differences(name: str, behavior: Behavior) -> None:
    """With all experts of a mixture: where their choice changes, the loss jumps."""
    family = FAMILIES[name]
    model = random_model(family.model_type, torch.float64, **family.extra | family.all_experts)
    rng = torch.Generator().manual_seed(1)
    prompt = model.prompt(suffixed(behavior, 4), target=behavior.target, rng=rng)
    bound = TargetCrossEntropy().bind(model, prompt, EMPTY)
    plain = Evaluator(model, prompt, bound, use_cache=False)
    check_gradient(Evaluator(model, prompt, bound), plain, tolerance=1e-4)


class Push(Intervention):
    """Adds a vector of its own at each residual write, scaled by the role of the position."""

    def __init__(self, model: Model) -> None:
        rng = torch.Generator().manual_seed(2)
        names = ("resid_pre", "attn_out", "mlp_out")
        self.vectors = {
            Site(layer, site): torch.randn(model.width, generator=rng)
            for layer in range(model.n_layers)
            for site in names
        }

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self.vectors)

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        assert ctx.roles is not None
        return activation + self.at(ctx.site, ctx.roles)

    def at(self, site: Site, roles: Tensor) -> Tensor:
        return self.vectors[site] * (0.5 + (roles == INSTRUCTION).float()).unsqueeze(-1)


@every_family
def test_interventions_reach_every_residual_write(name: str) -> None:
    model = model_of(name)
    ids, roles = model.chat.tokens(model.conversation(REQUEST))
    push = Push(model)
    reads = [Site(2, "resid_post", (0, 9)), Site(-1, "logits", (0, 9))]

    def change(layer: int, site: str, activation: Tensor) -> Tensor:
        if site == "resid_post":
            return activation
        return activation + push.at(Site(layer, site), roles)

    with torch.no_grad():
        trace = model.trace(ids.unsqueeze(0), reads, interventions=[push], roles=roles)
        with hooks(name, model, change):
            expected = model.hf(input_ids=ids.unsqueeze(0)).logits
    close(trace[reads[1]], expected[:, [0, 9]])


@every_family
def test_a_direction_ablated_at_every_write_is_gone_from_the_stream(name: str) -> None:
    """Holds only if no block writes anything else; needs no knowledge of the architecture."""
    model = model_of(name)
    ids = ids_of(model)
    direction = torch.randn(model.width, generator=torch.Generator().manual_seed(3))
    reads = [Site(layer, "resid_post", (0, 5, 9)) for layer in range(model.n_layers)]
    with torch.no_grad():
        ablated = AblateDirection(direction, model.n_layers)
        trace = model.trace(ids, reads, interventions=[ablated])
        before = model.trace(ids, reads)
    for site in reads:
        scale = before[site].norm() * direction.norm()
        assert (trace[site] @ direction).norm() < 1e-6 * scale
        assert (before[site] @ direction).norm() > 1e-2 * scale


@every_family
def test_answers_of_a_padded_batch_are_those_of_a_loop_of_traces(name: str) -> None:
    model = model_of(name)
    changes = [Push(model)]
    asked = [model.conversation(REQUEST), model.conversation(f"Hello! {REQUEST} Do tell me now.")]
    answers = model.generate(asked, max_new_tokens=3, interventions=changes)
    plain = model.generate(asked, max_new_tokens=3)
    ends = model.hf.generation_config.eos_token_id or []
    for messages, answer in zip(asked, answers, strict=True):
        ids, roles = model.chat.tokens(messages)
        length = len(ids)
        for _ in range(3):
            read = Site(-1, "logits", (len(ids) - 1,))
            with torch.no_grad():
                row = ids.unsqueeze(0)
                trace = model.trace(row, [read], interventions=changes, roles=roles)
            if (token := trace[read][0].argmax(-1)).item() in ends:
                break
            ids, roles = torch.cat([ids, token]), torch.cat([roles, torch.tensor([GENERATED])])
        decoded = model.chat.tokenizer.decode(ids[length:], skip_special_tokens=True)
        assert answer == decoded.strip()
    assert plain != answers


@every_family
def test_operations_are_those_of_the_flop_counter(name: str) -> None:
    model = model_of(name)
    ids = ids_of(model)
    before = model.meter.snapshot()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.trace(ids, [Site(-1, "logits", (5, 9))])
    work = model.meter.snapshot() - before
    assert work.flops == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("model_type", RECURRENT)
def test_a_family_that_carries_more_than_keys_and_values_has_no_prefix(model_type: str) -> None:
    model = random_model(model_type, **RECURRENT[model_type])
    with pytest.raises(BadInput, match=rf"(?i){model_type.replace('_', '')}.*keys and values"):
        model.prefix(ids_of(model)[0, :7])


def test_a_family_that_reads_padding_answers_prompts_of_one_length_only() -> None:
    model = random_model("recurrent_gemma", **RECURRENT["recurrent_gemma"])
    short, long = model.conversation(REQUEST), model.conversation(f"Hello! {REQUEST}")
    assert model.generate([short, short], max_new_tokens=2)
    with pytest.raises(BadInput, match=r"RecurrentGemma.*padding"):
        model.generate([short, long], max_new_tokens=2)


@pytest.mark.parametrize("model_type", NOT_ONLY_EMBEDDINGS)
def test_a_family_whose_tokens_are_more_than_their_embeddings_is_refused(model_type: str) -> None:
    """Its losses, computed from embeddings, would be of another model than its answers."""
    with pytest.raises(BadInput, match=r"(Gemma3n|FalconH1).*embeddings"):
        random_model(model_type, **NOT_ONLY_EMBEDDINGS[model_type])


@pytest.mark.parametrize(
    ("model_type", "extra", "match"),
    [
        ("doge", {}, "Doge.*block 0"),
        ("llama4_text", FLAT, "Llama4.*block 1.*'mlp_out'.*shape"),
        ("opt", {}, "OPT.*'mlp_out'"),
        ("mamba", {}, "Mamba.*'attn_out'"),
    ],
)
def test_a_family_whose_writes_cannot_be_told_is_refused_by_name(
    model_type: str, extra: dict[str, object], match: str
) -> None:
    model = random_model(model_type, **extra)
    change = [AblateDirection(torch.ones(model.width), model.n_layers)]
    reads = [Site(-1, "logits", (0,))]
    with pytest.raises(BadInput, match=match):
        model.trace(ids_of(model), reads, interventions=change)
    with pytest.raises(BadInput, match=match):
        model.generate([model.conversation(REQUEST)], max_new_tokens=2, interventions=change)


def test_beyond_its_first_context_longrope_has_no_beginnings() -> None:
    """All positions of a longer sequence are rotated otherwise, those of its beginning too."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0}
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0]}
    first = {"original_max_position_embeddings": 32}
    model = random_model("phi3", rope_parameters=rope | factors | first, **first)
    assert model.chat.context == 32
    ids = model.chat.allowed.nonzero().squeeze(1)[:40]

    def apart(length: int) -> float:
        """How far cached and uncached logits differ after so many tokens."""
        site = Site(-1, "logits", (length - 1,))
        full = model.trace(ids[:length].unsqueeze(0), [site])[site]
        rest = ids[20:length].unsqueeze(0)
        return float((model.trace(rest, [site], prefix=model.prefix(ids[:20]))[site] - full).norm())

    assert apart(32) < 1e-4 < 1e-2 < apart(40)
    with pytest.raises(BadInput, match="longer than the context"):
        model.generate([model.conversation("word " * 20)], max_new_tokens=2)


def test_a_model_that_sees_later_positions_is_refused() -> None:
    """As embedding models that were made of decoders do, and encoders."""
    windows = {**HEAD, **WINDOW}
    assert random_model("gemma3_text", **windows).checks is not None
    with pytest.raises(BadInput, match="Gemma3ForCausalLM: its positions see later ones"):
        random_model("gemma3_text", **windows, use_bidirectional_attention=True)
    with pytest.raises(BadInput, match="BertLMHeadModel: its positions see later ones"):
        random_model("bert")
    assert random_model("bert", is_decoder=True).checks is not None
