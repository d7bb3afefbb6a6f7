"""How long the parts of a search step take: ``make speed``. In `make test` each runs once.

Beside each figure of candidate evaluation stands its share of what a plain matrix product reaches
on the same machine in the same run (`share_of_ceiling`), from the operations that the meter counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from attacks.attack import SuffixAttack
from attacks.core.artefact import EMPTY, Artefact
from attacks.core.behavior import Behavior
from attacks.core.model import Model
from attacks.core.objectives import ProbeLoss, TargetCrossEntropy
from attacks.core.prompt import suffixed
from attacks.core.search import Evaluator
from attacks.core.search.candidates import swap, top_tokens
from attacks.core.sites import Site
from attacks.core.template import DATE
from attacks.registry import load
from benchmarks.harness.bench import Bench, Setup
from benchmarks.harness.cells import Cell, Settings, Task
from benchmarks.harness.engine import execute
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.studies.operations import ceiling
from conftest import POCKET, pocket

pytestmark = pytest.mark.slow

WIDTH, TOPK, SLOTS = 128, 64, 10
Timer = Callable[..., Any]

PROBE = Artefact({"weight.2": torch.linspace(-1, 1, 128), "bias.2": torch.tensor(0.0)})
OBJECTIVES = {"target": (TargetCrossEntropy(), EMPTY), "probe": (ProbeLoss((2,)), PROBE)}


@pytest.fixture(scope="module", name="ceiling")
def measured_ceiling() -> float:
    return ceiling()


def large() -> Model:
    """58 M parameters: 8 layers of width 512 and 32,000 tokens, with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=256,
    )
    tokenizer = pocket("pocket-llama").chat.tokenizer
    return Model(LlamaForCausalLM(config).float(), tokenizer, name="random-58m")


def evaluator(model: Model, behavior: Behavior, kind: str, slots: int = SLOTS) -> Evaluator:
    rng = torch.Generator().manual_seed(0)
    prompt = model.prompt(suffixed(behavior, slots), target=behavior.target, rng=rng)
    objective, artefact = OBJECTIVES[kind]
    return Evaluator(model, prompt, objective.bind(model, prompt, artefact))


def candidates(search: Evaluator, width: int = WIDTH) -> torch.Tensor:
    current = search.prompt.slot_ids
    gradient, _ = search.gradient(current)
    choices = top_tokens(gradient, current, search.model.chat.allowed, TOPK)
    rng = torch.Generator().manual_seed(0)
    return swap(current, choices, width=width, n_replace=1, rng=rng)


def evaluate(benchmark: Any, search: Evaluator, drawn: torch.Tensor, ceiling: float) -> None:
    before = search.model.meter.flops
    search.losses(drawn)
    flops = search.model.meter.flops - before
    assert benchmark(search.losses, drawn).shape == (len(drawn),)
    if benchmark.stats is not None:
        rate = flops / benchmark.stats.stats.median
        benchmark.extra_info["gflops_a_second"] = round(rate / 1e9, 1)
        benchmark.extra_info["share_of_ceiling"] = round(rate / ceiling, 2)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_candidate_losses(benchmark: Timer, kind: str, behavior: Behavior, ceiling: float) -> None:
    search = evaluator(pocket("pocket-llama"), behavior, kind)
    evaluate(benchmark, search, candidates(search), ceiling)


def test_candidate_losses_of_a_larger_model(
    benchmark: Any, behavior: Behavior, ceiling: float
) -> None:
    search = evaluator(large(), behavior, "target", slots=20)
    evaluate(benchmark, search, candidates(search, 4 if benchmark.disabled else 64), ceiling)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_gradient(benchmark: Timer, kind: str, behavior: Behavior) -> None:
    search = evaluator(pocket("pocket-llama"), behavior, kind)
    gradient, _ = benchmark(search.gradient, search.prompt.slot_ids)
    assert gradient.shape == (SLOTS, search.model.chat.vocab_rows)


@pytest.mark.parametrize("name", ["gcg", "ssr-probe"])
def test_step(benchmark: Any, name: str, behavior: Behavior) -> None:
    """All of it: gradient, choice, filter, losses, buffer, checkpoint."""
    model = pocket("pocket-llama")
    params: dict[str, Any] = {"keep": "none", "early_stop": None} if name == "ssr-probe" else {}
    attack = load(name, steps=10_000, width=WIDTH, topk=TOPK, slots=SLOTS, **params)
    artefact = Artefact(PROBE.tensors, {"layers": [2]})
    rng = torch.Generator().manual_seed(0)
    steps = attack.run(model, behavior, artefact=artefact, rng=rng)
    assert benchmark(next, steps).prompts


@pytest.mark.parametrize("shortcuts", [False, True], ids=["plain", "shortcuts"])
@pytest.mark.parametrize("name", ["pocket-llama", "pocket-llama-hard1", "pocket-llama-hard2"])
def test_search(benchmark: Any, name: str, shortcuts: bool) -> None:
    """What is saved over ten steps by sharing beginnings and leaving candidates early.

    By how much hangs on how far the search is from its target, hence three models.
    """
    model = pocket(name)
    behavior = next(each for each in load_behaviors("pocket-test") if each.harmful)
    search = load("gcg", steps=2 if benchmark.disabled else 10, width=WIDTH, topk=TOPK)
    assert isinstance(search, SuffixAttack)
    prompt = evaluator(model, behavior, "target").prompt
    bound = TargetCrossEntropy().bind(model, prompt, EMPTY)

    def run() -> float:
        work = Evaluator(model, prompt, bound, share=shortcuts, bound=shortcuts)
        rng = torch.Generator().manual_seed(0)
        *_, found = search.search().run(model, prompt, work, rng=rng)
        return float(found.losses[0])

    before = model.meter.flops
    benchmark.extra_info["loss"] = round(run(), 4)
    benchmark.extra_info["gflops"] = round((model.meter.flops - before) / 1e9, 1)
    assert benchmark.pedantic(run, rounds=1 if benchmark.disabled else 3) >= 0


@pytest.mark.parametrize("draft", ["", str(POCKET / "pocket-llama")], ids=["plain", "draft"])
def test_step_of_a_larger_model(benchmark: Any, draft: str, behavior: Behavior) -> None:
    """What probe sampling saves where the draft is much smaller than the model."""
    width = 16 if benchmark.disabled else 64
    numbers: dict[str, Any] = {"steps": 10_000, "width": width, "topk": TOPK, "slots": 20}
    attack = load("gcg", **numbers, **({"draft": {"model": draft}} if draft else {}))
    model = large()
    rng = torch.Generator().manual_seed(0)
    steps = attack.run(model, behavior, artefact=EMPTY, rng=rng)
    assert benchmark(next, steps).prompts
    before = model.meter.flops
    benchmark.extra_info["loss"] = round(next(steps).loss, 4)
    benchmark.extra_info["gflops"] = round((model.meter.flops - before) / 1e9)


def test_round_trip_filter(benchmark: Timer, behavior: Behavior) -> None:
    search = evaluator(pocket("pocket-llama"), behavior, "target")
    drawn = candidates(search)
    assert benchmark(search.model.chat.survives, search.prompt, drawn).any()


def test_prefix_cache(benchmark: Timer, behavior: Behavior) -> None:
    """Keys and values of what precedes the slots, once for each behaviour."""
    model = pocket("pocket-llama")
    ids = evaluator(model, behavior, "target").prompt.ids
    assert benchmark(model.prefix, ids).length == len(ids)


@pytest.mark.parametrize("way", ["nnsight", "plain"])
def test_forward_pass(benchmark: Timer, way: str, behavior: Behavior) -> None:
    """What nnsight adds to a pass over the candidates."""
    search = evaluator(pocket("pocket-llama"), behavior, "target")
    model = search.model
    embeds = model.embed(search.prompt.fill(candidates(search)))
    last = embeds.shape[1] - 1

    @torch.no_grad()
    def traced() -> torch.Tensor:
        return model.trace(embeds, [Site(-1, "logits", (last,))])[Site(-1, "logits", (last,))]

    @torch.no_grad()
    def plain() -> torch.Tensor:
        output = model.hf(inputs_embeds=embeds, use_cache=False, logits_to_keep=1)
        logits: torch.Tensor = output.logits
        return logits

    assert benchmark(traced if way == "nnsight" else plain).shape[0] == WIDTH


def test_harness(benchmark: Any, behavior: Behavior, tmp_path: Any) -> None:
    """What a cell takes beside search, verification, answers and judgement (`harness_share`)."""
    settings = Settings(32, 1, "never", "phrases", ("phrases",), None)
    folder = str(POCKET / "pocket-llama")
    setup = Setup(folder, "m", "cpu", "float32", None, DATE, settings, (), tmp_path, 1)
    bench = Bench(setup, pocket("pocket-llama"))
    cell = Cell("key", load("gcg", steps=2 if benchmark.disabled else 8), behavior, 0, "")
    shares = []

    def run() -> None:
        start = time.perf_counter()
        (outcome,) = execute(bench, Task((cell,)), lambda *_: None)
        whole = time.perf_counter() - start
        spent = outcome.record.seconds
        assert outcome.record.status == "ok"
        shares.append(1 - (spent.search + spent.verify + spent.generate + spent.judge) / whole)

    benchmark.pedantic(run, rounds=1 if benchmark.disabled else 5)
    assert all(share >= 0 for share in shares)
    benchmark.extra_info["harness_share"] = round(sorted(shares)[len(shares) // 2], 4)
