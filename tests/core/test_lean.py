"""Blocks with less in between: the same values as transformers' own, and only where they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.llama import modeling_llama as llama

from attacks.core.model import Model, lean
from attacks.core.model.cache import Prefix
from attacks.core.sites import Site
from random_models import FAMILIES, random_model

#: How many of attention, MLP and block in each layer are changed.
CHANGED = {"llama": 3, "mistral": 3, "qwen2": 3, "gemma": 3, "qwen3": 2, "gemma2": 1, "gpt2": 0}
LENGTH = 14
LAST = tuple(range(9, LENGTH))
READS = [Site(1, "resid_pre", LAST), Site(1, "attn_out", LAST), Site(1, "z", LAST)]
READS += [Site(2, "mlp_out", LAST)]
READS += [Site(2, "mlp_post", LAST), Site(2, "resid_post", LAST), Site(-1, "logits", LAST)]


def fused(name: str, dtype: torch.dtype = torch.float32) -> Model:
    model = random_model(FAMILIES[name].model_type, dtype, **FAMILIES[name].extra)
    model.hf.set_attn_implementation("eager" if name == "gemma2" else "sdpa")
    return model


def ids_of(model: Model) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(10, model.chat.vocab_rows, (5, LENGTH), generator=rng)
    ids[:, :6] = ids[0, :6]
    return ids


def count(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What `lean` finds each time it asks whether it applies."""
    asked: list[bool] = []
    applies = lean._applies

    def noted(module: nn.Module, inputs: Tensor) -> bool:
        asked.append(applies(module, inputs))
        return asked[-1]

    monkeypatch.setattr(lean, "_applies", noted)
    return asked


@pytest.mark.parametrize("name", CHANGED)
def test_cached_and_in_place_equals_uncached_float64(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the windows, against transformers' own blocks, which run with a gradient."""
    asked = count(monkeypatch)
    model, exact = fused(name), fused(name, torch.float64)
    ids = ids_of(model)
    with torch.no_grad():
        prefix = model.prefix(ids[0, :6])
        before = [(keys.clone(), values.clone()) for keys, values in prefix.layers]
        model.trace(ids, READS)  # Checks of the sites, which run once.
        asked.clear()
        cached = model.trace(ids[:, 6:], READS, prefix=prefix)
        assert asked == [True] * 3 * CHANGED[name]
        logits = model.trace(ids[:, 6:], READS[-1:], prefix=prefix)
        kept, longer = model.extended(ids[:, 6:], READS, prefix=prefix)
    exact.trace(ids, READS)
    exact.checks.prefix()
    asked.clear()
    with torch.enable_grad():
        plain = exact.trace(ids, READS)
        whole = exact.extended(ids, READS[-1:])[1]
    assert not any(asked)
    for site in READS:
        torch.testing.assert_close(cached[site].double(), plain[site], atol=1e-4, rtol=1e-4)
        assert torch.equal(cached[site], kept[site])
    torch.testing.assert_close(logits[READS[-1]], cached[READS[-1]], atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(longer.layers, whole.layers, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one.double(), other, atol=1e-4, rtol=1e-4)
    for mine, theirs in zip(prefix.layers, before, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))


def test_inputs_stay_as_they_are() -> None:
    model = fused("llama")
    embeds = model.embed(ids_of(model))
    given = embeds.clone()
    site = Site(0, "resid_pre", (0, 5))
    with torch.no_grad():
        read = model.trace(embeds, [site, *READS])[site]
    assert torch.equal(embeds, given)
    assert torch.equal(read, given[:, [0, 5]])


def test_without_a_cache_attention_is_causal() -> None:
    model, exact = fused("llama"), fused("llama", torch.float64)
    ids = ids_of(model)
    with torch.no_grad():
        ours = model.trace(ids, READS)
    plain = exact.trace(ids, READS)
    for site in READS:
        torch.testing.assert_close(ours[site].double(), plain[site], atol=1e-4, rtol=1e-4)


def test_only_what_is_word_for_word_the_same_is_changed() -> None:
    class Doubled(llama.LlamaMLP):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Any:
            down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
            return 2 * down_proj

    class Inherited(llama.LlamaMLP):  # type: ignore[misc]
        pass

    config = llama.LlamaConfig(hidden_size=32, intermediate_size=16)
    same, other, replaced = Inherited(config), Doubled(config), llama.LlamaMLP(config)
    replaced.forward = lambda x: x
    assert lean.replacement(same) is not None
    assert lean.replacement(other) is None and lean.replacement(replaced) is None


def test_what_does_not_compute_the_same_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a later transformers means something else by the same modules."""

    def off(self: Any, x: Tensor) -> Tensor:
        return 3 * type(self).forward(self, x)  # type: ignore[no-any-return]

    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 40}
    config = llama.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)
    for forwards, changed in ((lean._FORWARDS, 3), ({off: (llama.LlamaMLP,)}, 0)):
        monkeypatch.setattr(lean, "_FORWARDS", forwards)
        model = lean.made_lean(llama.LlamaForCausalLM(config).eval())
        assert sum("forward" in vars(module) for module in model.model.modules()) == changed


@pytest.mark.parametrize("rows", [1, 3])
def test_a_head_takes_the_last_positions_of_a_batch_as_one_matrix(rows: int) -> None:
    """In a product of batches, torch would repeat the weights of the vocabulary for each row."""
    config = GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=40)
    head = lean.made_lean(GPT2LMHeadModel(config).eval()).lm_head
    last = torch.randn(rows, 5, 8)[:, -2:]
    with torch.profiler.profile() as profile:
        logits = head(last)
    assert "aten::bmm" not in {event.name for event in profile.events()}
    torch.testing.assert_close(logits, nn.Linear.forward(head, last))


def test_a_cache_begins_with_views_and_keeps_what_it_is_told_to() -> None:
    keys, values = torch.randn(1, 2, 4, 3), torch.randn(1, 2, 4, 3)
    new = torch.randn(5, 2, 6, 3)
    for kept, length in ((True, 10), (False, 4)):
        cache = Prefix(((keys, values),), 4).expanded(5, kept=kept)
        assert cache.layers[0].keys.data_ptr() == keys.data_ptr()
        assert cache.get_seq_length() == 4
        both = cache.update(new, new, 0)
        assert torch.equal(both[1], torch.cat([values.expand(5, -1, -1, -1), new], 2))
        assert cache.get_seq_length() == length
