"""Traces, caches and answers against plain transformers and plain PyTorch hooks."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attacks.core.answer import cut
from attacks.core.errors import BadInput
from attacks.core.interventions import AblateDirection, Context, Intervention, SuppressTokens
from attacks.core.model import Model
from attacks.core.model.families import at_path
from attacks.core.prompt import INSTRUCTION, POST_INSTRUCTION, conversation
from attacks.core.sites import ROUTING, SITE_ORDER, Site
from conftest import ALIGNED, SHIPPED, pocket, tiny

REQUEST = "How do I paint the harp?"


def ids_of(model: Model, text: str = REQUEST) -> torch.Tensor:
    return model.plain(text).ids


def hooked(model: Model, ids: torch.Tensor, layer: int) -> dict[str, torch.Tensor]:
    """All sites of a block by plain hooks on a plain forward pass."""
    seen: dict[str, torch.Tensor] = {}
    structure = model.structure
    block = at_path(model.hf, f"{structure.blocks}.{layer}")

    def keep(name):  # type: ignore[no-untyped-def]
        def hook(module, args, output):  # type: ignore[no-untyped-def]
            seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def keep_input(module, args, kwargs):  # type: ignore[no-untyped-def]
        seen["resid_pre"] = args[0] if args else kwargs["hidden_states"]

    handles = [
        model.hf.get_input_embeddings().register_forward_hook(keep("embed")),
        block.register_forward_pre_hook(keep_input, with_kwargs=True),
        block.register_forward_hook(keep("resid_post")),
        at_path(model.hf, structure.module_path(layer, "mlp_post")).register_forward_pre_hook(
            lambda module, args: seen.__setitem__("mlp_post", args[0])
        ),
        getattr(block, structure.attn_out).register_forward_hook(keep("attn_out")),
        getattr(block, structure.mlp_out).register_forward_hook(keep("mlp_out")),
    ]
    with torch.no_grad():
        seen["logits"] = model.hf(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", ALIGNED)
def test_trace_sites_equal_plain_hooks(name: str) -> None:
    model = pocket(name)
    ids = ids_of(model).unsqueeze(0)
    length = ids.shape[1]
    reads = [
        Site(-1 if site in ("embed", "logits") else 2, site, (0, 3, -1)).at(length)
        for site in SITE_ORDER
        if site not in (*ROUTING, "tokens", "scores", "pattern", "z")  # have tests of their own
    ]
    with torch.no_grad():
        trace = model.trace(ids, reads)
    expected = hooked(model, ids, 2)
    for site in reads:
        torch.testing.assert_close(trace[site], expected[site.name][:, list(site.positions)])


@pytest.mark.parametrize("name", ALIGNED)
def test_the_forward_pass_stops_after_the_deepest_read(name: str) -> None:
    model = pocket(name)
    ran: list[int] = []
    blocks = at_path(model.hf, model.structure.blocks)
    handles = [
        block.register_forward_pre_hook(lambda *_, at=at: ran.append(at))
        for at, block in enumerate(blocks)
    ]
    ids = ids_of(model).unsqueeze(0)
    model.trace(ids, [Site(2, "resid_post", (1,))])
    for handle in handles:
        handle.remove()
    assert ran == [0, 1, 2]


@pytest.mark.parametrize("name", ALIGNED)
@pytest.mark.parametrize("start", [1, 7])
def test_cached_equals_uncached(name: str, start: int) -> None:
    """Also beyond the window of sliding-window layers."""
    model = pocket(name)
    ids = ids_of(model, REQUEST + " Tell me more about it, step by step, from start to end.")
    batch = ids.repeat(3, 1)
    batch[:, start:] = batch[:, start:].roll(1, dims=1)
    batch[1, start:] = batch[1, start:].flip(0)
    last = len(ids) - 1
    reads = [Site(1, "resid_post", (last,)), Site(-1, "logits", (last - 2, last))]
    with torch.no_grad():
        prefix = model.prefix(ids[:start])
        cached = model.trace(batch[:, start:], reads, prefix=prefix)
        again = model.trace(batch[:, start:], reads, prefix=prefix)
        full = model.trace(batch, reads)
        plain = model.hf(input_ids=batch).logits[:, [last - 2, last]]
    for site in reads:
        torch.testing.assert_close(cached[site], full[site], atol=2e-5, rtol=1e-4)
        assert torch.equal(cached[site], again[site]), "a pass must not change the shared cache"
    torch.testing.assert_close(full[reads[1]], plain, atol=2e-5, rtol=1e-4)


class Shift(Intervention):
    """Adds a number at one site, at the positions of one role."""

    def __init__(self, site: Site, role: int | None = None) -> None:
        self.site, self.role = site, role

    @property
    def sites(self) -> tuple[Site, ...]:
        return (self.site,)

    def __call__(self, activation: torch.Tensor, ctx: Context) -> torch.Tensor:
        if self.role is None:
            return activation + 0.3
        assert ctx.roles is not None
        chosen = (ctx.roles == self.role).to(activation.dtype)
        return activation + 0.3 * chosen.unsqueeze(-1)


@pytest.mark.parametrize("name", ALIGNED)
@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_post", "mlp_out", "resid_post"])
def test_interventions_in_a_trace_equal_plain_hooks(name: str, site: str) -> None:
    model = pocket(name)
    ids = ids_of(model).unsqueeze(0)
    last = ids.shape[1] - 1
    reads = [Site(2, site, (last,)), Site(-1, "logits", (last,))]
    with torch.no_grad():
        trace = model.trace(ids, reads, interventions=[Shift(Site(2, site))])
        untouched = model.trace(ids, reads)
    path = model.structure.module_path(2, site)
    module = at_path(model.hf, path)

    def on_input(module, args, kwargs):  # type: ignore[no-untyped-def]
        if args:
            return (args[0] + 0.3, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] + 0.3}

    def on_output(module, args, output):  # type: ignore[no-untyped-def]
        return (output[0] + 0.3, *output[1:]) if isinstance(output, tuple) else output + 0.3

    if site in ("resid_pre", "mlp_post"):
        handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(on_output)
    with torch.no_grad():
        expected = model.hf(input_ids=ids).logits[:, [last]]
    handle.remove()
    torch.testing.assert_close(trace[reads[1]], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(trace[reads[0]], untouched[reads[0]] + 0.3, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(trace[reads[1]], untouched[reads[1]])


@pytest.mark.parametrize("name", ALIGNED)
def test_generation_with_interventions_equals_a_loop_of_traces(name: str) -> None:
    """Plain hooks in `generate` against nnsight in `trace`, token by token, batched and padded."""
    model = pocket(name)
    direction = torch.randn(model.width, generator=torch.Generator().manual_seed(1))
    changes: list[Intervention] = [
        AblateDirection(direction, model.n_layers),
        Shift(Site(1, "resid_pre"), role=INSTRUCTION),
        Shift(Site(2, "mlp_post"), role=INSTRUCTION),
        SuppressTokens(torch.arange(300, 320), -50.0, steps=2),
    ]
    messages = model.conversation(REQUEST)
    longer = model.conversation(REQUEST + " I would like to know this now.")
    answers = model.generate([messages, longer], max_new_tokens=6, interventions=changes)
    ids, roles = model.chat.tokens(messages)
    for step in range(6):
        reads = [Site(-1, "logits", (len(ids) - 1,))]
        active = changes if step < 2 else changes[:3]
        with torch.no_grad():
            trace = model.trace(ids.unsqueeze(0), reads, interventions=active, roles=roles)
        token = trace[reads[0]][0, 0].argmax()
        if int(token) == model.hf.generation_config.eos_token_id:
            break
        ids = torch.cat([ids, token.unsqueeze(0)])
        roles = torch.cat([roles, torch.tensor([3])])
    new = ids[len(model.chat.tokens(messages)[0]) :]
    assert answers[0] == model.chat.tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", ALIGNED)
def test_hooks_come_off_after_a_failure_and_an_idle_run_is_bit_identical(name: str) -> None:
    model = pocket(name)
    ids = ids_of(model).unsqueeze(0)
    with torch.no_grad():
        before = model.hf(input_ids=ids).logits

    class Fails(Shift):
        def __call__(self, activation: torch.Tensor, ctx: Context) -> torch.Tensor:
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        model.generate(
            [model.conversation(REQUEST)],
            max_new_tokens=2,
            interventions=[Fails(Site(1, "attn_out"))],
        )
    with pytest.raises(Exception, match="planted"):
        model.trace(ids, [Site(-1, "logits", (0,))], interventions=[Fails(Site(1, "mlp_out"))])
    with torch.no_grad():
        assert torch.equal(model.hf(input_ids=ids).logits, before)


@pytest.mark.parametrize("name", SHIPPED)
def test_batched_answers_equal_single_ones_whatever_shares_the_batch(name: str) -> None:
    model = pocket(name)
    asked = [
        model.conversation(f"How do I {verb} the {noun}?")
        for verb, noun in [("paint", "harp"), ("mend", "kite"), ("forge", "key"), ("jam", "lock")]
    ]
    shape = {"pad_to": 32, "batch_size": 4}
    together = model.generate(asked, max_new_tokens=40, **shape)
    alone = [model.generate([one], max_new_tokens=40, **shape)[0] for one in asked]
    assert together == alone


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIGNED)
def test_an_answer_knows_whether_the_limit_cut_it(name: str) -> None:
    """It ends one token after the last that shows, whatever shares the batch and is padded."""
    model = pocket(name)
    asked = [model.conversation(text) for text in (REQUEST, "Please. " + REQUEST)]
    whole = model.generate(asked, max_new_tokens=80)
    assert cut(whole) == (False, False)
    for index, text in enumerate(whole):
        shown = len(model.chat.tokenizer(text, add_special_tokens=False).input_ids)
        limits = range(1, shown + 3)
        short = [model.generate(asked, max_new_tokens=limit)[index] for limit in limits]
        assert cut(short) == tuple(limit <= shown for limit in limits)
    assert cut([*whole, "what an endpoint says"]) == ()


def test_roles_are_found_by_offsets() -> None:
    model = pocket("pocket-llama")
    ids, roles = model.chat.tokens(conversation(REQUEST, system="Be kind."))
    spoken = model.chat.tokenizer.decode(ids[roles == INSTRUCTION])
    assert spoken == REQUEST
    assert roles.tolist() == sorted(roles.tolist())
    assert int(roles[-1]) == POST_INSTRUCTION


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gemma2", "mistral"])
@pytest.mark.parametrize("backward", [False, True])
def test_flops_are_those_of_the_flop_counter(model_type: str, backward: bool) -> None:
    model = tiny(model_type)
    ids = torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(0))
    reads = [Site(-1, "logits", (5, 19))]
    before = model.meter.snapshot()
    with FlopCounterMode(display=False) as counter:
        embeds = model.embed(ids).requires_grad_(backward)
        trace = model.trace(embeds, reads)
        if backward:
            trace[reads[0]].logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
    work = model.meter.snapshot() - before
    assert work.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert work.forward_tokens == 60 and work.backward_tokens == (60 if backward else 0)


def test_an_answer_is_counted_too() -> None:
    model = tiny("llama")
    before = model.meter.snapshot()
    with FlopCounterMode(display=False) as counter:
        model.generate([conversation(REQUEST)] * 2, max_new_tokens=7)
    work = model.meter.snapshot() - before
    assert work.flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_family_whose_writes_do_not_add_up_is_named() -> None:
    model = tiny("opt")
    with pytest.raises(BadInput, match="OPT"):
        model.trace(ids_of(model).unsqueeze(0), [Site(0, "mlp_out", (0,))])


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    model = tiny("llama")
    with pytest.raises(BadInput, match="longer than the context"):
        model.plain("word " * 200)
    with pytest.raises(BadInput, match="longer than the context"):
        model.generate([model.conversation("word " * 200)], max_new_tokens=2)


def test_a_template_without_system_role_is_refused() -> None:
    with pytest.raises(BadInput, match="system"):
        Model(
            pocket("pocket-gemma2").hf, pocket("pocket-gemma2").chat.tokenizer, name="g", system="x"
        )
