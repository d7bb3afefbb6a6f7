"""Weight edits in place for some forward passes: new parameters go in, the old ones come back.

A parameter is exchanged and not written to. So the old values are restored bit for bit whatever
happens in between, a graph built inside can be differentiated outside, and of a table that is both
embedding and unembedding only the embedding changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.core.errors import BadInput
from attacks.core.model.families import MLP, Structure, at_path
from attacks.core.weights import Change, WeightEdit, Writer

#: Modules, or stacked parameters of experts, that map an MLP's hidden units to the stream.
_DOWN = ("down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "w2", "output_linear")


@dataclass(frozen=True, eq=False)
class _Slot:
    """A parameter's place in the model."""

    module: nn.Module
    name: str
    writer: Writer
    axis: int
    """Of the parameter, along the stream."""

    @property
    def parameter(self) -> Tensor:
        held: Tensor = getattr(self.module, self.name)
        return held

    def edited(self, edit: WeightEdit) -> nn.Parameter | None:
        held = self.parameter.detach()
        # Classes of quantised tensors may call themselves floating-point.
        plain = type(held) in (Tensor, nn.Parameter) and held.is_floating_point()
        if not plain or held.is_meta:
            kind = str(held.dtype) if type(held) is Tensor else type(held).__name__
            what = "not loaded" if held.is_meta else kind
            raise BadInput(
                f"{self.writer.name}: its weights are {what}; only floating-point weights in "
                "memory can be edited"
            )
        exact = held.to(torch.promote_types(held.dtype, torch.float32))
        # The stream's axis second to last, as `WeightEdit` wants it.
        table = exact.unsqueeze(-1) if self.writer.bias else exact.movedim(self.axis, -2)
        new = edit(table, self.writer)
        if new is None:
            return None
        back = new.squeeze(-1) if self.writer.bias else new.movedim(-2, self.axis)
        return nn.Parameter(back.to(held.dtype).contiguous(), requires_grad=False)


@contextmanager
def edited(model: nn.Module, structure: Structure, changes: Sequence[Change]) -> Iterator[None]:
    """Apply the weight edits among `changes`, one after the other, inside the block.

    Raises:
        BadInput: a block whose output projections are not known, or weights that are not plain
            floating-point numbers in memory.
    """
    kept: list[tuple[_Slot, Tensor]] = []
    try:
        for edit in changes:
            if not isinstance(edit, WeightEdit):
                continue
            for slot in writers(model, structure):
                new = slot.edited(edit)
                if new is not None:
                    kept.append((slot, slot.parameter))
                    setattr(slot.module, slot.name, new)
        yield
    finally:
        for slot, parameter in reversed(kept):
            setattr(slot.module, slot.name, parameter)


def writers(model: nn.Module, structure: Structure) -> list[_Slot]:
    """Everything that writes to the residual stream: embeddings, then block by block.

    Raises:
        BadInput: a block whose output projections are not known.
    """
    width = int(model.config.get_text_config().hidden_size)  # type: ignore[operator, union-attr]
    slots = _embeddings(model, structure, width)
    for layer, projection in enumerate(structure.projections):
        path = f"{structure.blocks}.{layer}"
        block = at_path(model, path)
        mlp = next((name for name, _ in block.named_children() if name in MLP), None)
        found: dict[Literal["attention", "mlp"], list[str]] = {
            "attention": [f"{path}.{projection}"] if projection else [],
            "mlp": [] if mlp is None else _down(at_path(model, f"{path}.{mlp}"), f"{path}.{mlp}"),
        }
        for part, names in found.items():
            if not names:
                raise BadInput(
                    f"{structure.family}: no output projection of the {part} known in block "
                    f"{layer}, so its weights cannot be edited"
                )
            gain = _gain(model, structure, layer, part, width)
            for name in names:
                slots += _module_slots(model, name, layer, part, gain, width)
    return slots


def _embeddings(model: nn.Module, structure: Structure, width: int) -> list[_Slot]:
    """Tables of tokens and positions outside the blocks; the unembedding is not one of them."""
    return [
        _Slot(module, "weight", Writer(f"{path}.weight", -1, "embedding", False, None), 1)
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        and not path.startswith(f"{structure.blocks}.")
        and module.embedding_dim == width
    ]


def _down(mlp: nn.Module, path: str) -> list[str]:
    """Paths of the down projections in an MLP, those of all experts in a mixture."""
    names = []
    for name, module in mlp.named_modules():
        if name.rpartition(".")[2] in _DOWN and "weight" in dict(module.named_parameters()):
            names.append(f"{path}.{name}")
        names += [
            ".".join(part for part in (path, name, stacked) if part)
            for stacked, parameter in module.named_parameters(recurse=False)
            if stacked in _DOWN and parameter.ndim == 3
        ]
    return names


def _gain(
    model: nn.Module, structure: Structure, layer: int, part: str, width: int
) -> Tensor | None:
    """(D,) gain of the norm after the output, read off its answer to equal entries."""
    if not structure.norms_outputs:
        return None
    norm = at_path(
        model, structure.module_path(layer, "attn_out" if part == "attention" else "mlp_out")
    )
    held = next(norm.parameters())
    with torch.no_grad():
        gain: Tensor = norm(torch.ones(width, dtype=held.dtype, device=held.device))
    return gain


def _module_slots(
    model: nn.Module,
    path: str,
    layer: int,
    part: Literal["attention", "mlp"],
    gain: Tensor | None,
    width: int,
) -> list[_Slot]:
    owner, _, name = path.rpartition(".")
    module = at_path(model, path)
    if isinstance(module, nn.Parameter):  # (E, D, K) or (E, K, D)
        experts, biases = at_path(model, owner), f"{name}_bias"
        square = module.shape[1] == module.shape[2]
        last = getattr(experts, "is_transposed", False) if square else module.shape[2] == width
        slots = [_Slot(experts, name, Writer(path, layer, part, False, gain), 2 if last else 1)]
        if getattr(experts, biases, None) is not None:
            slots.append(
                _Slot(experts, biases, Writer(f"{owner}.{biases}", layer, part, True, gain), 1)
            )
        return slots
    # GPT-2's Conv1D keeps its matrix the other way round than nn.Linear.
    axis = 1 if type(module).__name__ == "Conv1D" else 0
    slots = [_Slot(module, "weight", Writer(f"{path}.weight", layer, part, False, gain), axis)]
    if getattr(module, "bias", None) is not None:
        slots.append(_Slot(module, "bias", Writer(f"{path}.bias", layer, part, True, gain), 0))
    return slots
