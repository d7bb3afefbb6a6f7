"""Every format that models are kept in, against plain transformers and the weights themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from formats import BASE, REQUEST, logits, plain, request_ids
from gguf import GGUFWriter
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from attacks.core.errors import BadInput
from attacks.core.interventions import AblateDirection
from attacks.core.model import Model
from attacks.core.model.loading import save_plain
from attacks.core.model.sources import Source, find_source
from attacks.core.sites import Site


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter on `pocket-llama`, whose base stands in its configuration only."""
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(plain(BASE), config).save_pretrained(folder)
    _rename_base(folder, str(BASE))
    return folder


def _rename_base(folder: Path, base: object) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": base}))


def test_an_adapter_is_merged_into_its_base(adapter: Path, tmp_path: Path) -> None:
    model = Model.load(str(adapter), device="cpu")
    ids = request_ids(model)
    beside = PeftModel.from_pretrained(plain(BASE), adapter)
    assert not torch.equal(logits(beside, ids), logits(plain(BASE), ids))
    torch.testing.assert_close(logits(model.hf, ids), logits(beside, ids), atol=1e-4, rtol=1e-4)
    merged = beside.merge_and_unload()
    assert torch.equal(logits(model.hf, ids), logits(merged, ids))
    assert model.revision != Model.load(str(BASE), device="cpu").revision
    # The same in one folder, as it is kept for the next time.
    save_plain(find_source(str(adapter)), tmp_path / "plain")
    assert torch.equal(logits(plain(tmp_path / "plain"), ids), logits(model.hf, ids))


def test_the_base_of_an_adapter_may_lie_beside_it(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "adapter")
    shutil.copytree(BASE, tmp_path / "base")
    _rename_base(tmp_path / "adapter", "owner/base")
    assert find_source(str(tmp_path / "adapter")) == Source(
        str(tmp_path / "adapter"),
        str(tmp_path / "adapter"),
        base=Source(str(tmp_path / "base"), str(tmp_path / "base")),
    )
    Model.check(str(tmp_path / "adapter"), name="adapter")


@pytest.mark.parametrize(
    ("base", "reason"),
    [(None, "names no base"), ("nowhere", "its base: unknown model 'nowhere'"), (3, "no base")],
)
def test_an_adapter_without_base_is_refused(
    adapter: Path, tmp_path: Path, base: object, reason: str
) -> None:
    folder = tmp_path / "here" / "adapter"
    shutil.copytree(adapter, folder)
    _rename_base(folder, base)
    with pytest.raises(BadInput, match=reason):
        Model.load(str(folder))


def test_an_adapter_with_pickled_weights_is_refused(adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(BadInput, match="no safetensors weights"):
        Model.load(str(folder))


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_of_shared_weights_is_not_merged_into_both(
    tmp_path: Path, tied: bool, kept: bool
) -> None:
    """PEFT adds to the weights of the head, which with tied embeddings are those of both ends."""
    base = plain(BASE)
    base.config.tie_word_embeddings = tied
    base.tie_weights()
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(BASE).save_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=kept)
    _rename_base(tmp_path / "adapter", str(tmp_path / "base"))
    if tied:
        with pytest.raises(BadInput, match="adapter': merged into its base it computes something"):
            Model.load(str(tmp_path / "adapter"), device="cpu")
        return
    model = Model.load(str(tmp_path / "adapter"), device="cpu")
    ids = request_ids(model)
    torch.testing.assert_close(logits(model.hf, ids), logits(adapted.eval(), ids))


def test_an_adapter_without_weights_is_refused(tmp_path: Path) -> None:
    """On a quantised base, where nothing is merged, the base alone would pass for it."""
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(plain(BASE), config).save_pretrained(tmp_path / "adapter")
    _rename_base(tmp_path / "adapter", str(BASE))
    with pytest.raises(BadInput, match="adapter' puts virtual tokens before prompts"):
        Model.load(str(tmp_path / "adapter"), device="cpu")


def test_weights_that_do_not_fill_their_model_are_refused(tmp_path: Path) -> None:
    """Transformers would fill it at random and go on, for instance with an unknown format."""
    folder = _copied(BASE, tmp_path / "model")
    lost = "model.layers.3.mlp.down_proj.weight"
    _renamed(folder / "model.safetensors", lost, lost.replace("weight", "qweight"))
    with pytest.raises(BadInput, match=f"model '{folder}': .* not fill these .*: {lost}$"):
        Model.load(str(folder), device="cpu")


def test_a_configuration_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = _copied(BASE, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] += 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"not fill these weights.* and 16 more$"):
        Model.load(str(folder), device="cpu")


def test_weights_that_are_not_used_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _copied(BASE, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "vision.weight": torch.ones(2)}, folder / "model.safetensors")
    assert Model.load(str(folder), device="cpu").n_layers == 6
    (said,) = caplog.messages
    assert said.endswith("does not use 1 weights of its checkpoint, such as 'vision.weight'")


def test_code_that_a_checkpoint_brings_is_said_not_to_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A kind of model that transformers knows is loaded as that, whatever the code would do."""
    folder = _copied(BASE, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for kind, lines in (("AutoTokenizer", 0), ("AutoModelForCausalLM", 1)):
        caplog.clear()
        own = {"auto_map": {kind: "modeling_own.Own"}}
        (folder / "config.json").write_text(json.dumps(config | own))
        Model.load(str(folder), device="cpu")
        assert [line.endswith("is transformers' LlamaForCausalLM") for line in caplog.messages] == (
            [True] * lines
        )


@pytest.mark.parametrize(
    ("layer", "what"), [("layers.9.", "not fill these"), ("none", "fit nowhere")]
)
def test_an_adapter_for_another_base_is_refused(
    adapter: Path, tmp_path: Path, layer: str, what: str
) -> None:
    folder = _copied(adapter, tmp_path / "adapter")
    if layer == "none":
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "layers_to_transform": [0, 1]}))
    else:
        _renamed(folder / "adapter_model.safetensors", "layers.3.", layer)
    with pytest.raises(BadInput, match=f"model '{folder}': .* {what}.* and [0-9]+ more$"):
        Model.load(str(folder), device="cpu")


def _copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def _renamed(file: Path, old: str, new: str) -> None:
    """Give tensors of a file other names."""
    tensors = {name.replace(old, new): value for name, value in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pocket-llama` as llama.cpp keeps models of this kind, in float32."""
    path = tmp_path_factory.mktemp("gguf") / "pocket.gguf"
    config = json.loads((BASE / "config.json").read_text())
    tokenizer = json.loads((BASE / "tokenizer.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    file = GGUFWriter(path, "llama")
    file.add_context_length(config["max_position_embeddings"])
    file.add_embedding_length(config["hidden_size"])
    file.add_block_count(config["num_hidden_layers"])
    file.add_feed_forward_length(config["intermediate_size"])
    file.add_head_count(heads)
    file.add_head_count_kv(kv_heads)
    file.add_layer_norm_rms_eps(config["rms_norm_eps"])
    file.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    file.add_rope_dimension_count(config["head_dim"])
    file.add_vocab_size(config["vocab_size"])
    words = AutoTokenizer.from_pretrained(BASE)
    special = {row["content"] for row in tokenizer["added_tokens"]}
    tokens = words.convert_ids_to_tokens(range(config["vocab_size"]))
    file.add_tokenizer_model("gpt2")
    file.add_token_list(tokens)
    file.add_token_types([3 if token in special else 1 for token in tokens])
    file.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    file.add_bos_token_id(config["bos_token_id"])
    file.add_eos_token_id(config["eos_token_id"][0])
    file.add_pad_token_id(config["pad_token_id"])
    file.add_chat_template(words.chat_template)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for name, tensor in plain(BASE).state_dict().items():
        values = tensor.numpy()
        for rotated, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if rotated in name:  # halves of a head to neighbours
                halves = values.reshape(count, 2, -1, values.shape[1])
                values = halves.swapaxes(1, 2).reshape(values.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        file.add_tensor(name, values)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


@pytest.mark.parametrize("form", ["{folder}/{file}", "{folder}:{file}"])
def test_a_gguf_file_is_the_model_it_was_made_from(gguf_file: Path, form: str) -> None:
    name = form.format(folder=gguf_file.parent, file=gguf_file.name)
    model = Model.load(name, device="cpu")
    ids = request_ids(model)
    theirs = plain(gguf_file.parent, gguf_file=gguf_file.name)
    assert torch.equal(logits(model.hf, ids), logits(theirs, ids))
    torch.testing.assert_close(logits(model.hf, ids), logits(plain(BASE), ids))
    assert len(model.revision) == 16


def test_a_gguf_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF but not really")
    for name, reason in (
        (f"{tmp_path}/a.gguf", "a.gguf' does not load"),
        (f"{tmp_path}/b.gguf", "no such GGUF file"),
        (f"{tmp_path}:b.gguf", "no such GGUF file"),
    ):
        with pytest.raises(BadInput, match=reason):
            Model.load(name)


def test_a_model_spread_over_places_gives_what_one_in_one_place_gives() -> None:
    """Blocks that lie on disk between their passes stand for those on another device."""
    whole = Model.load(str(BASE), device="cpu")
    parts = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
    spread = Model.load(
        str(BASE),
        device="cpu",
        device_map={
            **dict.fromkeys(parts, "cpu"),
            **{f"model.layers.{at}": "cpu" if at < 3 else "disk" for at in range(6)},
        },
    )
    assert spread.hf.model.layers[4].mlp.up_proj.weight.is_meta
    ids = request_ids(whole)
    last = (ids.shape[1] - 1,)
    reads = [Site(1, "resid_post", last), Site(4, "resid_post", last), Site(-1, "logits", last)]
    direction = AblateDirection(torch.ones(whole.width), whole.n_layers)
    results = []
    for model in (whole, spread):
        embeds = model.embed(ids).detach().requires_grad_()
        trace = model.trace(embeds, reads, interventions=[direction])
        torch.stack([value.sum() for value in trace.values()]).sum().backward()
        start = model.prefix(ids[0, :7])
        cached = model.trace(ids[:, 7:], reads, prefix=start)
        results.append([*trace.values(), embeds.grad, *cached.values()])
    for one, other in zip(*results, strict=True):
        # Blocks in several places run as transformers has them, those in one with less in between.
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    asked = [whole.conversation(REQUEST)]
    answers = [
        model.generate(asked, max_new_tokens=8, interventions=[direction])
        for model in (whole, spread)
    ]
    assert answers[0] == answers[1]


def test_an_unknown_device_map_is_refused() -> None:
    with pytest.raises(BadInput, match="unknown device map 'many'; valid: auto, balanced"):
        Model.load(str(BASE), device_map="many")
