"""Attention scores, patterns and head outputs: read in traces, changed in traces and answers."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from attacks.core.errors import BadInput
from attacks.core.interventions import Context, Intervention
from attacks.core.model import Model
from attacks.core.model.families import at_path
from attacks.core.prompt import INSTRUCTION
from attacks.core.sites import Site
from conftest import ALIGNED, pocket, tiny

REQUEST = "How do I paint the harp? Tell me all about it, step by step, from start to end."
#: Different attention: grouped heads, sliding windows, normed queries, one fused projection for
#: queries, keys and values, a norm after attention, a transposed output projection.
RANDOM = ("mistral", "qwen3", "phi3", "olmo2", "gemma3_text", "gpt2")


def model_of(name: str) -> Model:
    return pocket(name) if name.startswith("pocket") else tiny(name, pad_token_id=0)


def ids_of(model: Model) -> torch.Tensor:
    return model.plain(REQUEST).ids.unsqueeze(0)


@contextmanager
def eager(model: Model):  # type: ignore[no-untyped-def]
    own = model.hf.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.hf.set_attn_implementation(own)


def projection(model: Model, layer: int) -> torch.nn.Module:
    module: torch.nn.Module = at_path(model.hf, model.structure.module_path(layer, "z"))
    return module


@pytest.mark.parametrize("name", [*ALIGNED, *RANDOM])
def test_patterns_are_those_of_transformers_eager_attention(name: str) -> None:
    model = model_of(name)
    ids = ids_of(model).repeat(2, 1)
    ids[1, 4:9] = ids[1, 4:9].flip(0)
    length = ids.shape[1]
    positions = (0, 3, length - 1)
    reads = [Site(layer, "pattern", positions) for layer in range(model.n_layers)]
    with torch.no_grad():
        trace = model.trace(ids, reads)
        with eager(model):
            expected = model.hf(input_ids=ids, output_attentions=True).attentions
    for site in reads:
        assert trace[site].shape == (2, 3, model.structure.heads, length)
        torch.testing.assert_close(
            trace[site].transpose(1, 2), expected[site.layer][:, :, list(positions)]
        )


@pytest.mark.parametrize("name", [*ALIGNED, *RANDOM])
def test_masked_scores_give_the_pattern_and_the_pattern_gives_z(name: str) -> None:
    """The window of sliding-window layers is taken from where the pattern is zero."""
    model = model_of(name)
    ids = ids_of(model)
    length = ids.shape[1]
    every = tuple(range(length))
    reads = [Site(1, site, every) for site in ("scores", "pattern")]
    with torch.no_grad():
        trace = model.trace(ids, reads)
    scores, pattern = (trace[site][0].transpose(0, 1) for site in reads)
    causal = torch.ones(length, length).tril().bool()
    assert not (pattern * ~causal).any()
    reached = (pattern > 0).any(0)
    assert reached.diagonal().all()
    expected = scores.masked_fill(~reached, float("-inf")).softmax(-1)
    torch.testing.assert_close(pattern, expected, atol=1e-6, rtol=1e-5)
    assert torch.isfinite(scores).all()


def test_scores_are_scaled_products_after_the_soft_cap() -> None:
    """With a cap so tight that leaving it out, or the scale, would show."""
    model = tiny("gemma2", attn_logit_softcapping=0.02, query_pre_attn_scalar=2, pad_token_id=5)
    ids = ids_of(model)
    held: dict[str, torch.Tensor] = {}
    module = at_path(model.hf, model.structure.attention_path(0))
    handles = [
        getattr(module, name).register_forward_hook(
            lambda m, a, output, name=name: held.__setitem__(name, output)
        )
        for name in ("q_proj", "k_proj")
    ]
    read = Site(0, "scores", (0,))
    with torch.no_grad():
        got = model.trace(ids, [read])[read][0, 0, :, 0]
    for handle in handles:
        handle.remove()
    # At position 0 rotary embeddings turn nothing.
    query = held["q_proj"][0, 0].view(4, 8)
    key = held["k_proj"][0, 0].view(2, 8).repeat_interleave(2, 0)
    raw = (query * key).sum(-1) * 2.0**-0.5
    torch.testing.assert_close(got, 0.02 * torch.tanh(raw / 0.02), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(got, raw, rtol=1e-2)


@pytest.mark.parametrize("name", [*ALIGNED, *RANDOM])
def test_z_is_the_input_of_the_output_projection(name: str) -> None:
    model = model_of(name)
    ids = ids_of(model)
    seen: list[torch.Tensor] = []
    handle = projection(model, 1).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model.hf(input_ids=ids)
    handle.remove()
    last = ids.shape[1] - 1
    read = Site(1, "z", (2, last))
    with torch.no_grad():
        trace = model.trace(ids, [read])
    expected = seen[0].view(1, last + 1, model.structure.heads, -1)[:, [2, last]]
    torch.testing.assert_close(trace[read], expected)


@pytest.mark.parametrize("name", ["pocket-llama", "pocket-gemma2", "mistral"])
def test_reading_attention_changes_nothing_else(name: str) -> None:
    """All sites together, in one trace, with the values that they have apart."""
    model = model_of(name)
    ids = ids_of(model)
    last = ids.shape[1] - 1
    names = ("resid_pre", "z", "attn_out", "mlp_out", "resid_post")
    plain = [Site(1, site, (1, last)) for site in names] + [Site(-1, "logits", (last,))]
    weights = [Site(layer, site, (last,)) for layer in (0, 1) for site in ("pattern", "scores")]
    with torch.no_grad():
        alone = model.trace(ids, plain)
        before = model.trace(ids, weights)
        together = model.trace(ids, [*plain, *weights])
        again = model.trace(ids, plain)
    for site in plain:
        torch.testing.assert_close(together[site], alone[site], atol=2e-5, rtol=1e-4)
        assert torch.equal(again[site], alone[site])
    for site in weights:
        assert torch.equal(together[site], before[site])


@pytest.mark.parametrize("name", [*ALIGNED, "mistral", "gemma3_text"])
@pytest.mark.parametrize("start", [1, 7])
def test_a_prefix_cache_gives_the_same_attention_over_all_keys(name: str, start: int) -> None:
    model = model_of(name)
    ids = ids_of(model)
    batch = ids.repeat(3, 1)
    batch[1, start:] = batch[1, start:].flip(0)
    last = ids.shape[1] - 1
    reads = [
        Site(layer, site, (start, last))
        for layer in (0, model.n_layers - 1)
        for site in ("scores", "pattern", "z")
    ]
    with torch.no_grad():
        prefix = model.prefix(ids[0, :start])
        cached = model.trace(batch[:, start:], reads, prefix=prefix)
        full = model.trace(batch, reads)
    for site in reads:
        torch.testing.assert_close(cached[site], full[site], atol=2e-5, rtol=1e-4)


def test_the_forward_pass_stops_before_what_follows_the_deepest_attention() -> None:
    model = pocket("pocket-llama")
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, path=path: ran.append(path))
        for path, module in model.hf.named_modules()
        if path.endswith(("o_proj", "mlp"))
    ]
    model.trace(ids_of(model), [Site(1, "pattern", (3,))])
    for handle in handles:
        handle.remove()
    assert ran == ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp"]


class Twist(Intervention):
    """Turns the heads of one layer round and scales them; different at the instruction."""

    def __init__(self, site: Site) -> None:
        self.site = site

    @property
    def sites(self) -> tuple[Site, ...]:
        return (self.site,)

    def __call__(self, activation: torch.Tensor, ctx: Context) -> torch.Tensor:
        assert activation.ndim == 4
        assert ctx.roles is not None
        factor = 1.5 + (ctx.roles == INSTRUCTION)
        return activation.roll(1, dims=2) * factor[..., None, None]


@pytest.mark.parametrize("name", [*ALIGNED, "gpt2"])
def test_changing_z_in_a_trace_and_in_generation_equals_a_plain_hook(name: str) -> None:
    model = model_of(name)
    messages = model.conversation(REQUEST)
    ids, roles = model.chat.tokens(messages)
    start, last = len(ids), len(ids) - 1
    change = [Twist(Site(1, "z"))]

    def hook(module, args):  # type: ignore[no-untyped-def]
        rows, new, width = args[0].shape
        z = args[0].view(rows, new, model.structure.heads, -1).roll(1, dims=2)
        chosen = roles[:new] == INSTRUCTION if new > 1 else torch.zeros(1)
        return ((z * (1.5 + chosen[None, :, None, None].float())).view(rows, new, width),)

    reads = [Site(1, "z", (last,)), Site(-1, "logits", (last,))]
    answer = model.generate([messages], max_new_tokens=5, interventions=change)
    with torch.no_grad():
        trace = model.trace(ids.unsqueeze(0), reads, interventions=change, roles=roles)
        untouched = model.trace(ids.unsqueeze(0), reads)
        handle = projection(model, 1).register_forward_pre_hook(hook)
        expected = model.hf(input_ids=ids.unsqueeze(0)).logits[:, [last]]
        new = model.hf.generate(
            ids.unsqueeze(0),
            attention_mask=torch.ones(1, start, dtype=torch.int64),
            max_new_tokens=5,
            do_sample=False,
        )[0, start:]
        handle.remove()
    torch.testing.assert_close(trace[reads[1]], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(trace[reads[0]], untouched[reads[0]].roll(1, dims=2) * 1.5)
    assert not torch.allclose(trace[reads[1]], untouched[reads[1]])
    assert answer[0] == model.chat.tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize("site", ["scores", "pattern"])
def test_attention_weights_cannot_be_changed(site: str) -> None:
    model = pocket("pocket-llama")
    change = [Twist(Site(1, site))]
    with pytest.raises(BadInput, match="can be read but not changed"):
        model.trace(ids_of(model), [Site(-1, "logits", (0,))], interventions=change)
    with pytest.raises(BadInput, match="can be read but not changed"):
        model.generate([model.conversation("Hi.")], max_new_tokens=2, interventions=change)


@pytest.mark.parametrize("name", ["pocket-llama", "pocket-gemma2"])
def test_the_attention_implementation_comes_back_after_a_failure(name: str) -> None:
    class Fails(Twist):
        def __call__(self, activation: torch.Tensor, ctx: Context) -> torch.Tensor:
            during.append(model.hf.config._attn_implementation)
            raise RuntimeError("planted")

    model = pocket(name)
    during: list[str] = []
    own = model.hf.config._attn_implementation
    ids = ids_of(model)
    with torch.no_grad():
        before = model.hf(input_ids=ids).logits
    reads = [Site(2, "pattern", (0,))]
    with pytest.raises(Exception, match="planted"):
        model.trace(ids, reads, interventions=[Fails(Site(1, "z"))])
    assert during == ["reroute_recorded"] and own != during[0]
    assert model.hf.config._attn_implementation == own
    with torch.no_grad():
        model.trace(ids, reads)
        assert model.hf.config._attn_implementation == own
        assert torch.equal(model.hf(input_ids=ids).logits, before)


@pytest.mark.parametrize(
    ("name", "extra", "match"),
    [
        (
            "gpt_oss",
            {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8},
            "GptOss.*s_aux",
        ),
        ("falcon", {}, "Falcon.*attention interface"),
    ],
)
def test_families_with_another_attention_are_refused_by_name(
    name: str, extra: dict[str, object], match: str
) -> None:
    model = tiny(name, pad_token_id=0, **extra)
    own = model.hf.config._attn_implementation
    with pytest.raises(BadInput, match=match):
        model.trace(ids_of(model), [Site(1, "pattern", (3,))])
    assert model.hf.config._attn_implementation == own


def test_a_block_without_known_output_projection_is_refused_by_name() -> None:
    known = tiny("llama")
    model = Model(known.hf, known.chat.tokenizer, name="unknown")
    model.structure = replace(known.structure, projections=("self_attn.o_proj", None, None))
    ids = ids_of(model)
    model.trace(ids, [Site(0, "z", (3,))])
    for site in ("z", "pattern"):
        with pytest.raises(BadInput, match=r"Llama.*no output projection.*block 1"):
            model.trace(ids, [Site(1, site, (3,))])
    with pytest.raises(BadInput, match="no output projection"):
        model.generate(
            [model.conversation("Hi.")],
            max_new_tokens=2,
            interventions=[Twist(Site(1, "z"))],
        )
