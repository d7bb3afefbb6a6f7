"""Checkpoints of few bits, against plain transformers and against differences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from formats import BASE, REQUEST, logits, plain, request_ids
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, BitsAndBytesConfig, TorchAoConfig

from attacks.core.errors import BadInput
from attacks.core.model import Model
from attacks.core.sites import Site
from attacks.core.weights import Orthogonalise

#: Where in a word of 32 bits the eight values of four bits go.
ORDERS = {"gptq": range(8), "awq": (0, 4, 1, 5, 2, 6, 3, 7)}
GROUP = 32


@pytest.fixture(scope="module", params=["load_in_8bit", "load_in_4bit", "torchao", "gptq", "awq"])
def quantised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pocket-llama` as bitsandbytes, torchao, or the tools of GPTQ and AWQ keep it."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in ORDERS:
        # In no extra: it is built from source, and pins what the rest does not need.
        pytest.importorskip("gptqmodel")
        return packed(request.param, folder)
    few_bits: Callable[..., Any] = BitsAndBytesConfig
    if request.param == "torchao":
        # In no extra: transformers imports it wherever it is installed, and says much while at it.
        ways = pytest.importorskip("torchao.quantization")
        config = TorchAoConfig(ways.Int8WeightOnlyConfig())
    else:
        # On CPUs with bfloat16 instructions bitsandbytes takes whole blocks of 64 inputs only, and
        # these layers of a pocket model have 352.
        config = few_bits(
            **{request.param: True},
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=["down_proj", "lm_head"],
        )
    plain(BASE, quantization_config=config, device_map={"": "cpu"}).save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    return folder


def packed(way: str, folder: Path) -> Path:
    """`pocket-llama` in groups of 32 weights of 4 bits, rounded to the nearest."""
    model = plain(BASE)
    weights = {}
    for name, weight in model.state_dict().items():
        if not name.endswith("_proj.weight"):
            weights[name] = weight.half()
            continue
        groups = weight.T.reshape(-1, GROUP, len(weight))
        scales = groups.abs().amax(dim=1) / 7
        codes = ((groups / scales[:, None]).round() + 8).reshape(weight.T.shape)
        zeros = torch.full_like(scales, 8 if way == "awq" else 7)
        parts = {"scales": scales.half(), "qzeros": words_of(zeros, way)}
        if way == "awq":
            parts["qweight"] = words_of(codes, way)
        else:
            parts["qweight"] = words_of(codes.T, way).T
            parts["g_idx"] = torch.arange(len(codes), dtype=torch.int32) // GROUP
        at = name.removesuffix("weight")
        weights |= {f"{at}{part}": each.contiguous() for part, each in parts.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    told = {"quant_method": way, "bits": 4, "group_size": GROUP}
    told |= {"version": "gemm"} if way == "awq" else {"sym": True, "desc_act": False}
    config = {**model.config.to_dict(), "quantization_config": told}
    (folder / "config.json").write_text(json.dumps(config))
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    return folder


def words_of(values: Tensor, way: str) -> Tensor:
    """(N, M) values of four bits as (N, M / 8) words."""
    eights = values.reshape(len(values), -1, 8).long()
    words = sum(eights[..., at] << 4 * place for at, place in enumerate(ORDERS[way]))
    return words.to(torch.int32)


def test_a_quantised_model_answers_as_in_transformers(quantised: Path) -> None:
    model = Model.load(str(quantised), device="cpu")
    ids = request_ids(model)
    theirs = logits(plain(quantised, device_map={"": "cpu"}), ids)
    # Theirs may be of a kernel that computes in bfloat16 and passes no gradient back.
    assert float((logits(model.hf, ids) - theirs).norm() / theirs.norm()) < 0.01
    exact = logits(plain(BASE), ids)
    assert 0 < float((logits(model.hf, ids) - exact).norm() / exact.norm()) < 0.5


def test_gradients_reach_the_embeddings_of_a_quantised_model(quantised: Path) -> None:
    """Also once it has answered, after which kernels for 4 bits may keep them in another layout."""
    model = Model.load(str(quantised), device="cpu")
    model.generate([model.conversation("a")], max_new_tokens=2)
    embeds = model.embed(request_ids(model)).detach()

    def score(of: Tensor) -> Tensor:
        return model.hf(inputs_embeds=of).logits[0, -1, 100]

    of = embeds.clone().requires_grad_()
    score(of).backward()
    assert of.grad is not None
    way = 0.02 * embeds.norm() * torch.nn.functional.normalize(of.grad, dim=(0, 1, 2))
    told = float((of.grad * way).sum())
    with torch.no_grad():
        found = float(score(embeds + way) - score(embeds - way)) / 2
    # With 8 bits activations are rounded too, so that differences are those of steps.
    assert found == pytest.approx(told, rel=0.1 if "4bit" in quantised.name else 0.25)


def test_weights_of_few_bits_cannot_be_edited(quantised: Path) -> None:
    model = Model.load(str(quantised), device="cpu")
    edit = Orthogonalise(torch.ones(model.width))
    with pytest.raises(BadInput, match=r"only floating-point weights|no output projection"):
        model.changed([edit]).generate([model.conversation(REQUEST)], max_new_tokens=2)


def test_quantised_weights_that_pass_no_gradient_back_are_refused(quantised: Path) -> None:
    """What arrives goes along the residual stream only, as with torchao's dynamic 8 bits."""
    model = Model.load(str(quantised), device="cpu")
    embeds = model.embed(request_ids(model)).detach().requires_grad_()
    reads = [Site(-1, "logits", (embeds.shape[1] - 1,))]
    assert model.trace(embeds, reads)[reads[0]].requires_grad
    model = Model.load(str(quantised), device="cpu")
    for layer in model.hf.model.layers:
        for module in (layer.self_attn, layer.mlp):
            module.register_forward_hook(_cut)
    assert not model.trace(embeds.detach(), reads)[reads[0]].requires_grad
    with pytest.raises(BadInput, match="quantised weights pass no right gradients back"):
        model.trace(embeds, reads)


def _cut(module: torch.nn.Module, inputs: object, output: Any) -> Any:
    """Without what it passes back."""
    if isinstance(output, tuple):
        return (output[0].detach(), *output[1:])
    return output.detach()
