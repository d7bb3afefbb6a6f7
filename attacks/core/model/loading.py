"""Model and tokenizer from wherever `sources` finds them: no pickles, no remote code."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import logging as transformers_logging

from attacks.core.errors import BadInput
from attacks.core.model.sources import Source, content_hash, find_source, unknown

_logger = logging.getLogger(__name__)

_EXTRA = "extras: reroute-bench[formats] for GGUF and PEFT, [quantised] for bitsandbytes"
#: Tokens that a merged adapter is tried on.
_TOKENS = 12
#: Strategies of accelerate.
_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}


def load_parts(
    name_or_path: str, device: str, dtype: str, device_map: str | Mapping[str, Any] | None = None
) -> tuple[Any, Any, str]:
    """The model on its device, the tokenizer, and the revision; see `Model.load`.

    Raises:
        BadInput: one line that says what is missing and what to do.
    """
    place, wanted = _place(device, dtype, device_map)
    source = find_source(name_or_path)
    config, tokenizer = _config_and_tokenizer(source)
    hf = _placed(source, config, place, wanted, device_map)
    return hf, tokenizer, _revision(source, config)


def load_weights(name: str, config: Any, device: str, dtype: str, *, auto: Any) -> Any:
    """The model alone, where configuration and revision are known already; see `load_parts`.

    `auto` is the class of transformers that knows models of the wanted kind.

    Raises:
        BadInput: as `load_parts`.
    """
    place, wanted = _place(device, dtype, None)
    return _placed(find_source(name), config, place, wanted, None, auto)


def _place(
    device: str, dtype: str, device_map: str | Mapping[str, Any] | None
) -> tuple[torch.device, torch.dtype | None]:
    """The device and the dtype that were asked for, None for the model's own."""
    place = _device(device)
    if dtype != "auto" and dtype not in _DTYPES:
        raise BadInput(f"unknown dtype '{dtype}'; valid: auto, {', '.join(_DTYPES)}")
    if isinstance(device_map, str) and device_map not in _MAPS:
        raise BadInput(f"unknown device map '{device_map}'; valid: {', '.join(_MAPS)}")
    return place, _DTYPES.get(dtype)


def _placed(
    source: Source,
    config: Any,
    place: torch.device,
    dtype: torch.dtype | None,
    device_map: str | Mapping[str, Any] | None,
    auto: Any = AutoModelForCausalLM,
) -> Any:
    """The model of a source where it is to be."""
    on_cpu = place.type == "cpu"
    own = torch.float32 if on_cpu else config.dtype or torch.float32
    placing: dict[str, Any] = {}
    if device_map or _quantised(source, config):
        # Quantised weights are laid out for their device while they are loaded.
        placing["device_map"] = device_map or {"": place}
    hf = _weights(source, config, dtype=dtype or own, on_cpu=on_cpu, auto=auto, **placing)
    return hf if placing else hf.to(place)


def revision_of(name_or_path: str, config: Any) -> str:
    """What tells one state of a model from another: a folder's content, or the Hub's commit."""
    return _revision(find_source(name_or_path), config)


def _revision(source: Source, config: Any) -> str:
    return content_hash(source) or str(getattr(config, "_commit_hash", "") or "")


def _weights(
    source: Source, config: Any, *, on_cpu: bool, auto: Any = AutoModelForCausalLM, **options: Any
) -> Any:
    """The model of a source with its adapter, if it has one."""
    weights = source.base or source
    if on_cpu:
        # Grouped kernels are for accelerators; here they are slower, and not for float64.
        options["experts_implementation"] = "eager"
    if not weights.gguf:
        options["use_safetensors"] = True
    told = getattr(config, "quantization_config", None)
    with _explaining(weights.name):
        if isinstance(told, dict) and told.get("quant_method") in ("gptq", "awq"):
            # Their packages choose the kernel, by default one that may pass no gradient back.
            options["quantization_config"] = AutoQuantizationConfig.from_dict(
                {**told, "backend": "auto_trainable"}
            )
        hf, info = auto.from_pretrained(
            weights.place,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # They are told, and refused below.
            **weights.options,
            **options,
        )
    misshapen = [key for key, *_ in info["mismatched_keys"]]
    _demand(weights.name, lacking=[*info["missing_keys"], *misshapen])
    if unused := sorted(info["unexpected_keys"]):  # As with the images' part of a larger model.
        _logger.warning(
            "model '%s' does not use %d weights of its checkpoint, such as %s",
            *(weights.name, len(unused), ascii(unused[0])),
        )
    if any("Model" in kind for kind in getattr(config, "auto_map", None) or {}):
        _logger.warning(
            "model '%s' brings code of its own, which is not run: here it is transformers' %s",
            *(weights.name, type(hf).__name__),
        )
    for module in hf.modules():
        # bitsandbytes lays out 4-bit weights anew at the first pass without gradients, for a kernel
        # that passes no gradient back: from there on those of a search would be wrong.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        # gptqmodel does the same on CPUs, unless the first pass has gradients.
        if hasattr(module, "linear_mode"):
            module.linear_mode = "train"
    if source.base is None:
        return hf
    return _adapted(hf, source, merge=not _quantised(source, config))


def _quantised(source: Source, config: Any) -> bool:
    """Whether the weights stay in a format of few bits; those of GGUF files are dequantised."""
    weights = source.base or source
    return getattr(config, "quantization_config", None) is not None and not weights.gguf


def _demand(name: str, *, lacking: Iterable[str], unused: Iterable[str] = ()) -> None:
    """Refuse weights that do not fill their model: transformers would fill it at random.

    Raises:
        BadInput: tensors are lacking, or fit nowhere.
    """
    for keys, what in (
        (sorted(lacking), "its checkpoint does not fill these weights, which would be random"),
        (sorted(unused), "its checkpoint has weights that fit nowhere"),
    ):
        if keys:
            more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
            raise BadInput(f"model '{name}': {what}: {', '.join(keys[:2])}{more}")


def _adapted(hf: Any, source: Source, *, merge: bool) -> Any:
    """The model with a PEFT adapter: merged into its weights, or beside quantised ones."""
    with _explaining(source.name):
        from peft import PeftModel, get_peft_model_state_dict, load_peft_weights

        own = {f"base_model.model.{name}" for name in hf.state_dict()}
        on = PeftModel.from_pretrained(
            hf, source.place, autocast_adapter_dtype=False, use_safetensors=True
        )
        own |= set(on.state_dict())
        wanted = set(get_peft_model_state_dict(on, save_embedding_layers=False))
        given = set(load_peft_weights(source.place, device="cpu"))
    # Embeddings that come with an adapter go into the base.
    _demand(source.name, lacking=wanted - given, unused=given - wanted - own)
    if on.active_peft_config.is_prompt_learning:
        raise BadInput(
            f"adapter '{source.name}' puts virtual tokens before prompts; only adapters that "
            "change weights (LoRA, say) can be used"
        )
    if not merge:
        return on.get_base_model()
    table = hf.get_input_embeddings().weight
    ids = torch.arange(_TOKENS, device=table.device)[None] % len(table)
    with _explaining(source.name), torch.no_grad():
        beside = on.eval()(input_ids=ids, use_cache=False).logits.float()
        merged = on.merge_and_unload(safe_merge=True)
        off = merged(input_ids=ids, use_cache=False).logits.float() - beside
    if not off.norm() <= (1e-3 if hf.dtype == torch.float32 else 0.1) * beside.norm():
        raise BadInput(
            f"adapter '{source.name}': merged into its base it computes something else (it changes "
            "one of several places that share weights, such as tied embeddings)"
        )
    return merged


def save_plain(source: Source, folder: Path, dtype: str = "float32") -> None:
    """Write a model to `folder`, dequantised and with its adapter merged.

    Raises:
        BadInput: as `load_parts`.
    """
    config, tokenizer = _config_and_tokenizer(source)
    hf = _weights(source, config, on_cpu=True, dtype=_DTYPES[dtype])
    # What a GGUF file was quantised by says nothing about the weights that are written.
    hf.hf_quantizer = None
    if hasattr(hf.config, "quantization_config"):
        del hf.config.quantization_config
    with _quiet():
        hf.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def load_tokenizer(name_or_path: str) -> tuple[Any, Any]:
    """Configuration and tokenizer: enough to tell whether a model can be attacked at all.

    Raises:
        BadInput: as `load_parts`.
    """
    return _config_and_tokenizer(find_source(name_or_path))


def _config_and_tokenizer(source: Source) -> tuple[Any, Any]:
    """An adapter brings its tokenizer along where it was trained with one of its own."""
    weights = source.base or source
    own = source.base is not None and (Path(source.place) / "tokenizer_config.json").is_file()
    words = source if own else weights
    with _explaining(weights.name):
        config = AutoConfig.from_pretrained(weights.place, **weights.options)
        return config, AutoTokenizer.from_pretrained(words.place, **words.options)


@contextmanager
def _explaining(name: str) -> Iterator[None]:
    """Quietly, and with one line for whatever goes wrong."""
    try:
        with _quiet():
            yield
    # Loaders raise errors of half a dozen libraries; whatever it is, there is no model.
    except Exception as error:
        raise BadInput(_explain(name, error)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and warnings of libraries, and the Hub client's lines about retries."""
    bar: Any = transformers_logging
    hub = logging.getLogger("huggingface_hub")
    level, bars, verbosity = hub.level, bar.is_progress_bar_enabled(), bar.get_verbosity()
    hub.setLevel(logging.ERROR)
    bar.set_verbosity_error()
    bar.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # Of one library to another: nothing that a user could do about it.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        hub.setLevel(level)
        bar.set_verbosity(verbosity)
        if bars:
            bar.enable_progress_bar()


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device '{device}' is not available here; try cpu") from error
    return place


def _explain(name: str, error: Exception) -> str:
    """One line on why a model does not load, and what to do."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    if isinstance(error, ImportError):
        return f"model '{name}' needs a package: {text[:200]}; {_EXTRA}"
    if Path(name).exists():
        return f"model folder '{name}' does not load: {text[:200]}"
    if "gated" in text.lower() or kind == "GatedRepoError":
        return (
            f"model '{name}' is gated on the Hub: accept its terms there and log in (hf auth login)"
        )
    if "safetensors" in text:
        return f"model '{name}' has no safetensors weights; other weight formats are not loaded"
    return unknown(name)
