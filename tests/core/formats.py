"""The model that tests keep in other formats, and how transformers itself has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from attacks.core.model import Model
from conftest import POCKET

BASE = POCKET / "pocket-llama"
REQUEST = "How do I paint the harp?"


def plain(folder: Path | str, **options: Any) -> Any:
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    return hf.eval().requires_grad_(False)


def logits(hf: Any, ids: Tensor) -> Tensor:
    """With gradients, where blocks run as transformers has them (see `attacks.core.model.lean`)."""
    with torch.enable_grad():
        return hf(input_ids=ids).logits.detach()


def request_ids(model: Model) -> Tensor:
    return model.plain(REQUEST).ids.unsqueeze(0)
