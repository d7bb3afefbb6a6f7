"""Where a step's time goes, by kind of operation: ``python -m benchmarks.studies.operations``.

GCG on the shapes of the race against nanoGCG, under torch's profiler. An operation counts with the
time that is its own, on the thread that runs the search; what no operation accounts for is Python,
and the tokenizer of the round-trip filter is marked. Profiling makes small operations look dearer
than they are, so the step is timed without it too.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from attacks.core.model import Model
from benchmarks.boards.tables import table
from benchmarks.common.progress import say
from benchmarks.common.threads import fixed_threads
from benchmarks.common.versions import hardware
from benchmarks.harness.timing import Stopwatch, today
from benchmarks.inputs.models import resolve
from benchmarks.race.plain import core
from benchmarks.race.shapes import SHAPES, Shape
from benchmarks.race.tasks import behaviors_of, task_of
from benchmarks.race.weights import make_random_llama

_TOKENIZER = "tokenizer"
_ELEMENTWISE, _PYTHON = "elementwise, norms and reductions", "Python and the rest"
#: Operations by kind, without torch's prefix and the underscores around; others are elementwise.
KINDS = {
    "matrix products": "mm addmm bmm baddbmm",
    "attention": "scaled_dot_product_flash_attention_for_cpu softmax safe_softmax "
    "scaled_dot_product_flash_attention_for_cpu_backward softmax_backward_data",
    "indexing, joining and copying": "cat copy clone index index_select index_put index_put_impl "
    "gather scatter embedding stack to_copy index_copy index_fill slice_backward select_backward",
    "sampling and sorting": "rand randint random uniform argsort sort topk unique_dim mode isin "
    "kthvalue nonzero multinomial argmax argmin bernoulli",
    "views and allocation": "view transpose slice expand reshape t unsqueeze squeeze as_strided "
    "empty empty_like empty_strided detach to select split permute unsafe_view alias resize item "
    "local_scalar_dense is_nonzero flatten narrow contiguous view_as expand_as lift_fresh chunk "
    "linear matmul scaled_dot_product_attention unbind result_type zeros ones full new_zeros",
    "the filter's tokenizer": _TOKENIZER,
}
_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names.split()}
ROWS = (*KINDS, _ELEMENTWISE, _PYTHON)


def kind_of(operation: str) -> str:
    """The kind of an operation of torch's profiler, such as "aten::mm"."""
    if operation.startswith("autograd::") or operation.endswith(("Backward0", "Backward1")):
        return "views and allocation"
    return _KIND_OF.get(operation.removeprefix("aten::").strip("_"), _ELEMENTWISE)


def shares(operations: Iterable[tuple[str, float]], whole: float) -> dict[str, float]:
    """The share of each kind in `whole` seconds, from operations with their own seconds."""
    spent = dict.fromkeys(ROWS, 0.0)
    for name, seconds in operations:
        spent[kind_of(name)] += seconds
    spent[_PYTHON] = max(0.0, whole - sum(spent.values()))
    return {kind: spent[kind] / whole for kind in ROWS}


def ceiling(*, processor: bool = False) -> float:
    """FLOPs a second, or a processor second, of a large square matrix product: best of several."""
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    seconds = []
    for _ in range(10):
        watch = Stopwatch()
        left @ right
        seconds.append(watch.processor if processor else watch.elapsed)
    return 2 * 1024**3 / min(seconds)


def measure(shape: Shape, model: Model, steps: int) -> dict[str, Any]:
    """A step's seconds and FLOPs without the profiler, and the shares with it."""
    (behavior,) = behaviors_of(shape, model, 1)
    _, prompt = task_of(shape, model, behavior, steps=steps, seed=0)

    def survives(candidates: Tensor) -> Tensor:
        with record_function(_TOKENIZER):
            return model.chat.survives(prompt, candidates)

    run = core(model, prompt, shape, Generator().manual_seed(0), survives)
    next(run)  # The first step also computes what precedes the slots.
    before, watch = model.meter.flops, Stopwatch()
    for _ in range(steps):
        next(run)
    seconds, processor = watch.elapsed / steps, watch.processor / steps
    flops = (model.meter.flops - before) / steps
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        watch = Stopwatch()
        for _ in range(steps):
            next(run)
        whole = watch.elapsed
    found = [(event.key, event.self_cpu_time_total / 1e6) for event in profiler.key_averages()]
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "flops": flops,
        "ceiling": ceiling(processor=True),
        "shares": shares(found, whole),
    }


def page(facts: dict[str, Any], columns: dict[str, dict[str, Any]]) -> str:
    """The table, in Markdown."""
    rows = [
        ["milliseconds a step", *(f"{1e3 * c['seconds']:.0f}" for c in columns.values())],
        ["of the processor", *(f"{1e3 * c['processor_seconds']:.0f}" for c in columns.values())],
        ["GFLOPs a step", *(f"{c['flops'] / 1e9:.3g}" for c in columns.values())],
        [
            "GFLOPs a processor second, of those of a large matrix product",
            *(
                f"{c['flops'] / c['processor_seconds'] / c['ceiling']:.2f}"
                for c in columns.values()
            ),
        ],
        *([kind, *(f"{c['shares'][kind]:.3f}" for c in columns.values())] for kind in ROWS),
    ]
    told = "".join(f"- {key}: {value}\n" for key, value in facts.items())
    return (
        f"# Where a step of GCG goes\n\n{told}\n{table(('', *columns), rows, left=1)}\n\n"
        "Shares of a profiled step by kind of operation; they add up to 1. The first four rows are "
        "measured without the profiler.\n"
    )


def main(argv: list[str] | None = None) -> None:
    """Measure, and write `operations.md` and `operations.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add: Any = parser.add_argument
    add("--out", type=Path, default=Path("results/speed"))
    add("--shape", nargs="+", choices=("pocket", "58m"), default=("pocket", "58m"))
    add("--threads", type=int, nargs="+", default=(1, 2))
    add("--steps", type=int, default=8)
    options = parser.parse_args(argv)
    columns = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.shape:
            shape = SHAPES[name]
            folder = Path(scratch) / name
            if shape.size is not None:
                make_random_llama(folder, shape.size, dtype=torch.float32, seed=0)
            place = resolve(shape.shipped) if shape.shipped else str(folder)
            model = Model.load(place, name=name, device="cpu", dtype="float32")
            for threads in options.threads:
                label = f"{name}, {threads} thread{'s' * (threads > 1)}"
                with fixed_threads(threads):
                    columns[label] = measure(shape, model, options.steps)
                say(f"{label}: {columns[label]['seconds']:.3f} s a step")
    facts = {
        "date": today(),
        "machine": f"{hardware('cpu')}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "steps": options.steps,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"facts": facts, "columns": columns}, indent=1)
    (options.out / "operations.json").write_text(content + "\n", "utf-8")
    (options.out / "operations.md").write_text(page(facts, columns), "utf-8")


if __name__ == "__main__":
    main()
