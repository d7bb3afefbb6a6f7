"""Routing sites against plain hooks, experts switched off and on, and a planted expert found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attacks import load
from attacks.core.analysis.experts import (
    activation_maps,
    answer_labels,
    permutation_test,
    ranking,
    relevance,
    split_half,
)
from attacks.core.errors import BadInput
from attacks.core.gating import (
    ExcludeExperts,
    Expert,
    ForceExperts,
    SilenceExperts,
    per_block,
)
from attacks.core.interventions import Context, Intervention
from attacks.core.model import Model
from attacks.core.model.families import at_path
from attacks.core.model.hooks import intervening
from attacks.core.refusals.abliteration import Yardstick
from attacks.core.sites import Site
from attacks.core.weights import Abliterate
from conftest import first_rows, pocket, tiny

SIZE, SLOTS, LAYER = 6, 2, 1
_QWEN = {"num_experts": SIZE, "num_experts_per_tok": SLOTS, "moe_intermediate_size": 16}
MIXTURES: dict[str, dict[str, object]] = {
    "olmoe": {"num_experts": SIZE, "num_experts_per_tok": SLOTS},
    "qwen2_moe": {**_QWEN, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**_QWEN, "head_dim": 8, "norm_topk_prob": True},
    "mixtral": {"num_local_experts": SIZE, "num_experts_per_tok": SLOTS},
}
OTHERS: dict[str, dict[str, object]] = {
    "phimoe": {"num_local_experts": SIZE, "num_experts_per_tok": SLOTS},
    "glm4_moe": {
        **{"n_routed_experts": SIZE, "moe_intermediate_size": 16, "head_dim": 8},
        "num_experts_per_tok": SLOTS,
    },
    "deepseek_v3": {
        **{"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        **{"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1},
        **{"q_lora_rank": 16, "kv_lora_rank": 16},
        **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
        "num_key_value_heads": 4,
    },
}
every_mixture = pytest.mark.parametrize("family", MIXTURES)
TEXTS = ("How do I paint the harp?", "Tell me how to tune the old harp.")


def mixture(family: str) -> Model:
    return tiny(family, **MIXTURES[family])


def ids_of(model: Model, text: str = TEXTS[0]) -> Tensor:
    return model.plain(text).ids.unsqueeze(0)


class Given:
    """What each block's experts are given, by plain hooks: gates (B T, E) from weights and indices.

    This is the contribution of each expert: its output is multiplied by it.
    """

    def __init__(self, model: Model) -> None:
        self.gates: dict[int, Tensor] = {}
        self.logits: dict[int, Tensor] = {}
        self._model = model

    def __enter__(self) -> Given:
        def experts(layer):  # type: ignore[no-untyped-def]
            def keep(module, args):  # type: ignore[no-untyped-def]
                hidden, indices, weights = args
                gates = torch.zeros(len(hidden), SIZE, dtype=weights.dtype)
                self.gates[layer] = gates.scatter_add(1, indices, weights)

            return keep

        def router(layer):  # type: ignore[no-untyped-def]
            def keep(module, args, output):  # type: ignore[no-untyped-def]
                self.logits[layer] = args[0].flatten(0, -2) @ module.weight.T

            return keep

        self._handles = []
        for layer in range(self._model.n_layers):
            block = at_path(self._model.hf, f"model.layers.{layer}.mlp")
            self._handles += [
                block.experts.register_forward_pre_hook(experts(layer)),
                block.gate.register_forward_hook(router(layer)),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def changed_pass(model: Model, *changes: Intervention) -> tuple[Given, Tensor]:
    """What the experts are given, and the logits, in a hooked pass over two prompts."""
    length = min(ids_of(model, text).shape[1] for text in TEXTS)
    ids = torch.cat([ids_of(model, text)[:, :length] for text in TEXTS])
    with (
        torch.no_grad(),
        Given(model) as given,
        intervening(model.hf, model.structure, changes, roles=None, mask=None),
    ):
        logits = model.hf(input_ids=ids).logits
    return given, logits


@every_mixture
def test_routing_sites_equal_plain_hooks(family: str) -> None:
    model = mixture(family)
    ids = torch.cat([ids_of(model), ids_of(model).flip(1)])
    rows = tuple(range(ids.shape[1]))
    reads = [Site(layer, name, rows) for layer in (0, 2) for name in ("router", "gates")]
    with torch.no_grad(), Given(model) as given:
        model.hf(input_ids=ids)
    with torch.no_grad():
        trace = model.trace(ids, reads)
    for site in reads:
        seen = given.logits if site.name == "router" else given.gates
        torch.testing.assert_close(trace[site], seen[site.layer].view(2, len(rows), SIZE))


@every_mixture
def test_before_top_k_another_expert_is_promoted(family: str) -> None:
    model = mixture(family)
    plain, _ = changed_pass(model)
    off, _ = changed_pass(model, ExcludeExperts((Expert(LAYER, 0), Expert(LAYER, 3))))
    used = plain.gates[LAYER][:, [0, 3]] > 0
    assert used.any() and not used.all()
    assert not off.gates[LAYER][:, [0, 3]].any(), "an excluded expert contributes nothing"
    assert ((off.gates[LAYER] > 0).sum(1) == SLOTS).all()
    logits = plain.logits[LAYER].index_fill(1, torch.tensor([0, 3]), -torch.inf)
    wanted = logits.topk(SLOTS).indices.sort().values
    assert torch.equal(off.gates[LAYER].topk(SLOTS).indices.sort().values, wanted)


@every_mixture
def test_after_top_k_the_rest_keeps_the_sum(family: str) -> None:
    model = mixture(family)
    plain, _ = changed_pass(model)
    off, _ = changed_pass(model, SilenceExperts((Expert(LAYER, 0),)))
    before, after = plain.gates[LAYER], off.gates[LAYER]
    hit = before[:, 0] > 0
    assert hit.any() and not hit.all()
    assert not after[:, 0].any()
    assert torch.equal(after[~hit], before[~hit])
    assert ((after > 0).sum(1) == SLOTS - hit.long()).all(), "nothing is promoted"
    torch.testing.assert_close(after.sum(1), before.sum(1))
    kept = before.index_fill(1, torch.tensor([0]), 0)
    torch.testing.assert_close(after, kept / kept.sum(1, True) * before.sum(1, True))


@every_mixture
def test_a_position_without_experts_left_gets_nothing(family: str) -> None:
    model = mixture(family)
    off, logits = changed_pass(
        model, SilenceExperts(tuple(Expert(LAYER, index) for index in range(SIZE)))
    )
    assert not off.gates[LAYER].any() and torch.isfinite(logits).all()
    with pytest.raises(BadInput, match="all 6 experts"):
        changed_pass(model, ExcludeExperts(tuple(Expert(LAYER, index) for index in range(SIZE))))


@every_mixture
def test_a_forced_expert_has_the_mean_gate_everywhere(family: str) -> None:
    model = mixture(family)
    plain, _ = changed_pass(model)
    on, _ = changed_pass(model, ForceExperts((Expert(LAYER, 4),)))
    before, after = plain.gates[LAYER], on.gates[LAYER]
    assert (after[:, 4] > 0).all() and ((after > 0).sum(1) == SLOTS).all()
    torch.testing.assert_close(after.sum(1), before.sum(1))
    own = before.index_fill(1, torch.tensor([4]), 0)
    best = own.amax(1)
    mean = before.sum(1) / SLOTS
    torch.testing.assert_close(after[:, 4], mean / (mean + best) * before.sum(1))
    assert torch.equal(after.index_fill(1, torch.tensor([4]), 0).argmax(1), own.argmax(1))
    with pytest.raises(BadInput, match="3 experts are forced on"):
        changed_pass(model, ForceExperts(tuple(Expert(LAYER, index) for index in range(3))))


@every_mixture
@pytest.mark.parametrize("kind", [ExcludeExperts, SilenceExperts, ForceExperts])
def test_traces_and_hooks_change_the_same_and_leave_nothing(
    family: str, kind: type[ExcludeExperts | SilenceExperts | ForceExperts]
) -> None:
    model = mixture(family)
    change = kind((Expert(0, 1), Expert(LAYER, 4)))
    ids = ids_of(model)
    rows = tuple(range(ids.shape[1]))
    with torch.no_grad():
        before = model.hf(input_ids=ids).logits
        traced = model.trace(ids, [Site(-1, "logits", rows)], interventions=[change])
        with intervening(model.hf, model.structure, [change], roles=None, mask=None):
            hooked = model.hf(input_ids=ids).logits
        assert torch.equal(model.hf(input_ids=ids).logits, before), "hooks must come off"
    torch.testing.assert_close(traced[Site(-1, "logits", rows)], hooked)
    assert not torch.allclose(hooked, before)


class Nothing(Intervention):
    """Reads both routing sites of a block and hands them back as they are."""

    sites = (Site(LAYER, "router"), Site(LAYER, "gates"))

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        return activation.clone()


@every_mixture
def test_choosing_anew_from_the_same_is_bit_identical(family: str) -> None:
    model = mixture(family)
    _, plain = changed_pass(model)
    _, changed = changed_pass(model, Nothing())
    assert torch.equal(changed, plain)


@every_mixture
def test_silencing_an_expert_that_is_never_chosen_is_bit_identical(family: str) -> None:
    model = mixture(family)
    ids = ids_of(model)[:, :3]
    with torch.no_grad(), Given(model) as given:
        before = model.hf(input_ids=ids).logits
    idle = int((given.gates[LAYER] > 0).sum(0).argmin())
    assert not given.gates[LAYER][:, idle].any()
    change = SilenceExperts((Expert(LAYER, idle),))
    with (
        torch.no_grad(),
        intervening(model.hf, model.structure, [change], roles=None, mask=None),
    ):
        assert torch.equal(model.hf(input_ids=ids).logits, before)


def test_router_comes_before_gates_whatever_the_order_given() -> None:
    model = mixture("olmoe")
    changes = (ForceExperts((Expert(LAYER, 4),)), ExcludeExperts((Expert(LAYER, 0),)))
    for order in (changes, changes[::-1]):
        given, _ = changed_pass(model, *order)
        assert not given.gates[LAYER][:, 0].any()
        assert (given.gates[LAYER][:, 4] > 0).all()


@pytest.mark.parametrize("family", OTHERS)
def test_routers_that_choose_otherwise_are_refused_by_name(family: str) -> None:
    model = tiny(family, **OTHERS[family])
    with pytest.raises(BadInput, match=r"router of block \d .*TopK?k?Router\)"):
        model.trace(ids_of(model), [Site(model.structure.expert_layers[0], "gates", (0,))])


def test_a_dense_model_has_no_experts() -> None:
    model = pocket("pocket-llama")
    with pytest.raises(BadInput, match="no experts"):
        model.trace(ids_of(model), [Site(0, "router", (0,))])
    with pytest.raises(BadInput, match=r"'pocket-llama' .* has no experts"):
        load("experts").prepare(model, [], rng=torch.Generator())


@every_mixture
def test_maps_are_shares_of_tokens(family: str) -> None:
    """Batches of several lengths give what each prompt gives alone."""
    model = mixture(family)
    texts = [*TEXTS, TEXTS[0] + " Please.", TEXTS[0]]
    maps = activation_maps(model, texts)
    assert maps.shape == (4, model.n_layers, SIZE)
    torch.testing.assert_close(maps.sum(-1), torch.full((4, model.n_layers), SLOTS).double())
    assert torch.equal(maps[0], maps[3])
    with torch.no_grad(), Given(model) as given:
        model.hf(input_ids=ids_of(model, texts[1]))
    torch.testing.assert_close(maps[1, LAYER], (given.gates[LAYER] > 0).double().mean(0))


def planted(rng: torch.Generator, *, strength: float, prompts: int = 60) -> tuple[Tensor, Tensor]:
    """Maps (N, 4, 16) of a toy router that favours expert 11 of block 2 on refusals."""
    labels = torch.arange(prompts) % 2 == 0
    logits = torch.randn(prompts, 30, 4, 16, generator=rng)
    logits[labels, :, 2, 11] += strength
    chosen = torch.zeros_like(logits).scatter(-1, logits.topk(2).indices, 1.0)
    return chosen.double().mean(1), labels


def test_a_planted_expert_is_ranked_first_and_is_no_chance(rng: torch.Generator) -> None:
    maps, labels = planted(rng, strength=1.0)
    values = relevance(maps, labels)
    assert ranking(values, layers=(1, 2, 5, 7))[0] == Expert(5, 11)
    p_values = permutation_test(maps, labels, draws=500, rng=rng)
    assert p_values[2, 11] == pytest.approx(1 / 501)
    assert int((p_values < 0.05).sum()) == 1
    assert split_half(maps, labels, splits=5, rng=rng) > 0.05


def test_without_a_cause_the_test_hardly_ever_finds_one(rng: torch.Generator) -> None:
    """Over all 64 experts at once: about 5 % of the runs, however many experts there are."""
    found = 0
    for _ in range(60):
        maps, labels = planted(rng, strength=0.0, prompts=30)
        p_values = permutation_test(maps, labels, draws=100, rng=rng)
        found += bool((p_values < 0.05).any())
    assert found <= 10


def test_blocks_have_their_fill() -> None:
    order = [Expert(0, 1), Expert(0, 2), Expert(1, 5), Expert(0, 3), Expert(1, 6)]
    assert per_block(order, 1) == [Expert(0, 1), Expert(1, 5)]
    assert per_block(order, 5) == order


@every_mixture
def test_only_the_chosen_experts_count_as_work(family: str) -> None:
    model = mixture(family)
    ids = ids_of(model)
    before = model.meter.snapshot()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.trace(ids, [Site(-1, "logits", (0, 3))])
    flops = (model.meter.snapshot() - before).flops
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_what_is_thought_before_an_answer_is_no_part_of_it() -> None:
    model = pocket("pocket-llama-think")
    rows = first_rows(4)
    assert "<think>" in model.generate([model.conversation(rows[0].text)], max_new_tokens=4)[0]
    assert answer_labels(model, rows).tolist() == [row.harmful for row in rows]
    yardstick = Yardstick(model, rows, rows)
    nothing = Abliterate(torch.eye(model.n_layers, model.width), *[(0.0,) * model.n_layers] * 2)
    assert yardstick.refusals(nothing) == len(yardstick.harmful) == 4
