"""Weight edits: their algebra, orthogonalisation is ablation, and nothing stays behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from attacks.core.errors import BadInput
from attacks.core.interventions import AblateDirection, Context, Intervention
from attacks.core.model import Model, PlainModel
from attacks.core.model.editing import edited, writers
from attacks.core.objectives import TargetCrossEntropy
from attacks.core.prompt import conversation, suffixed
from attacks.core.reading.states import last_token, next_token_log_probs
from attacks.core.search import Evaluator
from attacks.core.sites import Site
from attacks.core.weights import Abliterate, Orthogonalise, OrthogonaliseSubspace, Writer, take_out
from conftest import POCKET, check_gradient, normal, pocket, tiny

TEXTS = ["How do I paint the harp?", "Tell me how to forge the key."]


def direction_for(model: Model, seed: int = 0) -> torch.Tensor:
    return torch.randn(model.width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 5), (3, 8, 5), (8, 1)])
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0, 2.0])
def test_a_share_of_the_direction_is_taken_out(
    shape: tuple[int, ...], strength: float, rng: torch.Generator
) -> None:
    weight, r = torch.randn(shape, generator=rng), torch.randn(8, generator=rng)
    after = take_out(weight, 7 * r, strength=strength)
    torch.testing.assert_close(r @ after, (1 - strength) * (r @ weight), atol=1e-5, rtol=1e-5)
    unit = r / r.norm()
    across = torch.eye(8) - torch.outer(unit, unit)
    torch.testing.assert_close(across @ after, across @ weight, atol=1e-5, rtol=1e-5)


def test_norm_preserving_edits_keep_the_length_of_every_row(rng: torch.Generator) -> None:
    weight, r = torch.randn((2, 8, 5), generator=rng), torch.randn(8, generator=rng)
    weight[0, 3] = 0.0
    after = take_out(weight, r, keep_norms=True)
    torch.testing.assert_close(after.norm(dim=-1), weight.norm(dim=-1))
    assert (r @ after).norm() < (r @ weight).norm()
    same = take_out(weight, r, strength=0.0, keep_norms=True)
    torch.testing.assert_close(same, weight, atol=1e-6, rtol=1e-6)


def test_abliteration_takes_out_what_reaches_the_stream_behind_a_norm(rng: torch.Generator) -> None:
    weight, gain = torch.randn((8, 5), generator=rng), torch.rand(8, generator=rng) + 0.5
    r = torch.randn(8, generator=rng)
    after = Abliterate(r[None], (1.0,), (0.0,))(weight, Writer("w", 0, "attention", False, gain))
    assert after is not None
    torch.testing.assert_close(r @ (gain[:, None] * after), torch.zeros(5), atol=1e-5, rtol=0)


def test_abliteration_leaves_embeddings_biases_and_layers_of_strength_zero(
    rng: torch.Generator,
) -> None:
    weight = torch.randn((8, 5), generator=rng)
    edit = Abliterate(torch.randn((2, 8), generator=rng), (0.5, 0.0), (0.0, 0.7))
    for layer, part, bias, strength in (
        (0, "attention", False, 0.5),
        (1, "attention", False, None),
        (0, "mlp", False, None),
        (1, "mlp", False, 0.7),
        (1, "mlp", True, None),
        (-1, "embedding", False, None),
    ):
        after = edit(weight, Writer("w", layer, part, bias, None))  # type: ignore[arg-type]
        if strength is None:
            assert after is None
        else:
            r = edit.directions[layer]
            torch.testing.assert_close(r @ after, (1 - strength) * (r @ weight))


@pytest.mark.parametrize(
    "model",
    [
        lambda: pocket("pocket-llama"),
        lambda: pocket("pocket-qwen2"),
        lambda: tiny("mixtral"),
        lambda: tiny("gpt_oss", head_dim=8),
        lambda: tiny("gpt2"),
    ],
    ids=["llama", "qwen2 (tied)", "mixtral", "gpt_oss", "gpt2"],
)
def test_orthogonalised_weights_are_ablation(model) -> None:  # type: ignore[no-untyped-def]
    subject = model()
    direction = direction_for(subject)
    plain = next_token_log_probs(subject, TEXTS)
    ablated = next_token_log_probs(
        subject, TEXTS, interventions=[AblateDirection(direction, subject.n_layers)]
    )
    by_weights = next_token_log_probs(subject, TEXTS, interventions=[Orthogonalise(direction)])
    torch.testing.assert_close(by_weights, ablated, atol=1e-4, rtol=0)
    assert (ablated - plain).abs().max() > 1e-3, "the direction matters"


def test_answers_of_edited_weights_are_those_of_ablation() -> None:
    model = pocket("pocket-qwen2")
    direction = direction_for(model)
    asked = [model.conversation(text) for text in TEXTS]
    answers = [
        model.generate(asked, max_new_tokens=12, interventions=[change])
        for change in (Orthogonalise(direction), AblateDirection(direction, model.n_layers))
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", ["pocket-llama", "pocket-gemma2"])
def test_nothing_along_the_direction_reaches_the_stream(name: str) -> None:
    """Also where a norm with gain follows, though there it is not ablation."""
    model = pocket(name)
    direction = direction_for(model)
    sites = [Site(layer, "resid_post") for layer in range(model.n_layers)]
    states = last_token(model, TEXTS, sites, interventions=[Orthogonalise(direction)])
    for site in sites:
        share = (states[site] @ direction).abs() / (direction.norm() * states[site].norm(dim=1))
        assert share.max() < 1e-4
    assert model.structure.norms_outputs == (name == "pocket-gemma2")


class Fails(Intervention):
    """Raises in the middle of a pass."""

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site(1, "mlp_out"),)

    def __call__(self, activation: torch.Tensor, ctx: Context) -> torch.Tensor:
        raise RuntimeError("planted")


def test_weights_come_back_bit_for_bit_also_after_a_failure() -> None:
    model = pocket("pocket-qwen2")
    ids = model.plain(TEXTS[0]).ids
    read = [Site(-1, "logits", (len(ids) - 1,))]
    held = {name: (p, p.detach().clone()) for name, p in model.hf.named_parameters()}
    with torch.no_grad():
        before = model.hf(input_ids=ids.unsqueeze(0)).logits
    changes = [
        Orthogonalise(direction_for(model)),
        Abliterate(direction_for(model).expand(6, -1), (1.3,) * 6, (0.4,) * 6, keep_norms=True),
    ]
    asked = [model.conversation(TEXTS[0])]

    def check() -> None:
        now = dict(model.hf.named_parameters())
        assert now.keys() == held.keys()
        for name, (parameter, value) in held.items():
            assert now[name] is parameter and torch.equal(parameter, value)
        assert model.hf.lm_head.weight is model.hf.get_input_embeddings().weight
        with torch.no_grad():
            assert torch.equal(model.hf(input_ids=ids.unsqueeze(0)).logits, before)

    model.generate(asked, max_new_tokens=2, interventions=changes)
    check()
    model.trace(ids.unsqueeze(0), read, interventions=changes)
    model.prefix(ids[:3], interventions=changes)
    check()
    with pytest.raises(RuntimeError, match="planted"):
        model.generate(asked, max_new_tokens=2, interventions=[*changes, Fails()])
    check()
    with pytest.raises(Exception, match="planted"):
        model.trace(ids.unsqueeze(0), read, interventions=[*changes, Fails()])
    check()


def test_of_a_tied_table_only_the_embedding_changes() -> None:
    model = pocket("pocket-qwen2")
    table, direction = model.hf.lm_head.weight, direction_for(model)
    with model.editing([Orthogonalise(direction)]):
        assert model.hf.lm_head.weight is table
        embedding = model.hf.get_input_embeddings().weight
        assert (embedding @ direction).abs().max() < 1e-4 < (table @ direction).abs().max()


def test_an_edit_in_place_is_not_applied_twice() -> None:
    model = pocket("pocket-llama")
    half = Abliterate(direction_for(model).expand(6, -1), (0.5,) * 6, (0.5,) * 6)
    once = next_token_log_probs(model, TEXTS, interventions=[half])
    with model.editing([half]):
        nested = next_token_log_probs(model, TEXTS, interventions=[half])
    assert torch.equal(once, nested)


def test_the_gradient_of_a_search_is_that_of_the_edited_model() -> None:
    model = pocket("pocket-llama", "float64")
    from attacks import Behavior

    behavior = Behavior("b", TEXTS[0], target="Sure, here is how")
    prompt = model.prompt(
        suffixed(behavior, 3), target=behavior.target, rng=torch.Generator().manual_seed(0)
    )
    bound = TargetCrossEntropy().bind(model, prompt, None)  # type: ignore[arg-type]
    edit = [Orthogonalise(direction_for(model).double())]
    search = Evaluator(model, prompt, bound, interventions=edit)
    outside, loss = search.gradient(prompt.slot_ids)
    assert loss == pytest.approx(float(search.losses(prompt.slot_ids.unsqueeze(0))[0]), rel=1e-5)
    with model.editing(edit):
        plain = Evaluator(model, prompt, bound, interventions=edit, use_cache=False)
        check_gradient(search, plain)
        assert torch.equal(search.gradient(prompt.slot_ids)[0], outside)


def test_what_cannot_be_edited_is_refused() -> None:
    model = tiny("llama")
    block = model.hf.model.layers[1]
    projection = block.mlp.down_proj
    try:
        del block.mlp.down_proj
        with pytest.raises(BadInput, match="output projection of the mlp known in block 1"):
            writers(model.hf, model.structure)
        block.mlp.down_proj = torch.nn.Linear(64, 32, device="meta")
        with (
            pytest.raises(BadInput, match=r"layers\.1\.mlp\.down_proj\.weight: .*not loaded"),
            edited(model.hf, model.structure, [Orthogonalise(direction_for(model))]),
        ):
            pass
    finally:
        block.mlp.down_proj = projection
    assert not torch.isnan(next_token_log_probs(model, TEXTS)).any()


def test_a_plain_model_answers_as_an_edited_checkpoint_would(tmp_path: Path) -> None:
    """Against weights that are edited by formula, saved and loaded."""
    folder = POCKET / "pocket-llama"
    basis = torch.linalg.qr(normal(128, 64)).Q.T
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, weight in hf.named_parameters():
        if name.endswith("embed_tokens.weight"):
            weight.data -= weight.data @ basis.T @ basis
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.data -= basis.T @ basis @ weight.data
    hf.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    told = {"name": "m", "device": "cpu", "dtype": "float32"}
    asked = [conversation("How do I paint the harp?"), conversation("How do I mend the kite?")]
    plain, merged = PlainModel(str(folder), **told), PlainModel(str(tmp_path), **told)
    before = plain.answers(asked, max_new_tokens=16)
    edits = [OrthogonaliseSubspace(basis)]
    assert plain.answers(asked, max_new_tokens=16, edits=edits) == merged.answers(
        asked, max_new_tokens=16
    )
    assert before != merged.answers(asked, max_new_tokens=16)
    assert plain.answers(asked, max_new_tokens=16) == before


def test_an_answer_of_an_edited_model_is_that_of_one_edit() -> None:
    """Not of two: half of a direction taken out twice is three quarters of it."""
    model = pocket("pocket-llama")
    seen: list[str] = []

    class Counted(Orthogonalise):
        def __call__(self, weight: torch.Tensor, writer: Writer) -> torch.Tensor | None:
            seen.append(writer.name)
            return super().__call__(weight, writer)

    edit = Counted(direction_for(model))
    asked = [model.conversation(TEXTS[0])]
    model.changed((edit,)).generate(asked, max_new_tokens=1)
    assert seen and len(set(seen)) == len(seen)
