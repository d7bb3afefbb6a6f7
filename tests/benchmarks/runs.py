"""Small runs for tests: a random model, a scripted attack, and records without their times."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from attacks.attack import Artefact, Attack, Behavior, Step, ThreatModel
from attacks.core.prompt import conversation
from attacks.core.refusals.openers import GENERAL_OPENERS
from attacks.core.template import DATE
from benchmarks.cli import main
from benchmarks.harness.bench import Setup
from benchmarks.harness.cells import Settings
from benchmarks.inputs.suites import Suite
from benchmarks.storage.records import Record
from benchmarks.storage.store import read_judgements, read_records
from conftest import POCKET, ROOT

SEARCH = "slots=3,width=8,topk=8"


def tiny_config(tokenizer: Any, **fields: Any) -> Any:
    """A llama of a few thousand weights."""
    return AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        **fields,
    )


def make_model(folder: Path) -> Path:
    """A tiny random llama with a chat template, saved as any model is."""
    tokenizer = AutoTokenizer.from_pretrained(POCKET / "pocket-llama")
    config = tiny_config(
        tokenizer,
        num_hidden_layers=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_behaviors(path: Path, count: int, *, prefix: str = "test", **fields: Any) -> Path:
    """`count` harmful behaviours, then their harmless twins."""
    rows = []
    for harmful in (True, False):
        for index in range(count):
            name = f"{prefix}-{index}"
            rows.append(
                {
                    "id": name if harmful else f"{name}-twin",
                    "text": f"{prefix}: {'break' if harmful else 'mend'} the harp no. {index}"
                    + " again" * (5 * index),
                    "target": "Sure, here is how:",
                    "category": "music",
                    "harmful": harmful,
                    "twin": f"{name}-twin" if harmful else name,
                    "reference": None,
                    **fields,
                }
            )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_suite(model: Path, behaviors: Path, *attacks: str, **fields: Any) -> Suite:
    """A suite over one model."""
    settings = {"max_new_tokens": 4, **fields}
    return Suite("test", (str(model),), attacks, str(behaviors), **settings)


def command(suite: Suite, out: Path, *flags: str) -> list[str]:
    """The command line of an ad-hoc run."""
    given = ["--model", *suite.models, "--behaviors", suite.behaviors, "--out", str(out)]
    attacks = [word for attack in suite.attacks for word in ("--attack", attack)]
    numbers = ["--max-new-tokens", "4", "--limit", str(suite.limit or 1), "--checkpoint", "0"]
    steps = ["--steps", str(suite.steps)] if suite.steps else []
    return ["run", *given, *attacks, *numbers, *steps, *flags]


@contextmanager
def started(argv: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The command in a process, and a group, of its own."""
    code = "import sys; from benchmarks.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until_it_searches(process: subprocess.Popen[str], out: Path) -> None:
    """Waits for the first checkpoint."""
    deadline = time.monotonic() + 300
    while not list((out / "checkpoints").glob("*.safetensors")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def make_setup(source: str, artefacts: Path, **fields: Any) -> Setup:
    """What a process is told of a model whose cells it is to run."""
    told = {
        "name": "tiny",
        "device": "auto",
        "dtype": "auto",
        "system": None,
        "date": DATE,
        "settings": Settings(4, 1, "never", "phrases", ("phrases",), None),
        "openers": GENERAL_OPENERS,
        "concurrency": 1,
    }
    return Setup(source=source, artefacts=artefacts, **{**told, **fields})


def plain(record: Record) -> dict[str, Any]:
    """A record without what may differ between two runs."""
    values = dataclasses.asdict(record)
    for name in ("seconds", "peak_memory_bytes", "concurrency", "versions", "hardware", "suite"):
        del values[name]
    if values["first_success"]:
        del values["first_success"]["seconds"]
    return values


def contents(folder: Path) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """All that two runs must share: records by key, and judgements."""
    records = read_records(folder)
    judgements = [repr(judgement) for judgement in read_judgements(folder)]
    assert len({record.key for record in records}) == len(records)
    assert len(set(judgements)) == len(judgements)
    return {record.key: plain(record) for record in records}, set(judgements)


def hostile_page(source: Path, folder: Path, text: str) -> Path:
    """The page of the run `source` were its prompts, answers and errors `text`."""
    run, out = folder / "run", folder / "report.html"
    shutil.copytree(source, run)
    records = [
        dataclasses.replace(record, prompts=(text,), completions=(text,), error=text)
        for record in read_records(source)
    ]
    lines = "".join(f"{json.dumps(dataclasses.asdict(record))}\n" for record in records)
    (run / "records.jsonl").write_text(lines, "utf-8")
    assert main(["report", str(run), "--with-completions", "--out", str(out)]) == 0
    return out


@dataclasses.dataclass(frozen=True)
class Scripted(Attack):
    """Sends "magic" from step `magic` on, and goes wrong where it is told to."""

    name: ClassVar[str] = "scripted"
    summary: ClassVar[str] = "for tests"
    threat_model: ClassVar[ThreatModel] = ThreatModel.PROMPT
    broken: ClassVar[bool] = True

    steps: int = 6
    magic: int = 0
    wrong: str = ""
    wrong_on: str = ""
    asked: str = ""

    def run(
        self, model: Any, behavior: Behavior, *, artefact: Artefact, rng: Any, state: Any = None
    ) -> Iterator[Step]:
        assert behavior.reference is None and behavior.decoys is None
        for step in range(1, self.steps + 1):
            model.meter.flops += 100
            loss = 1 / step
            if self.broken and step == 3 and self.wrong_on in behavior.id:
                if self.wrong == "nan":
                    loss = float("nan")
                elif self.wrong == "memory":
                    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
                elif self.wrong:
                    raise KeyError("first line\nsecond \x1b[31mline")
            word = "magic" if self.magic and step >= self.magic else "nothing"
            texts = (f"{word} {step}", f"second {step}")
            prompts = tuple(conversation(text) for text in texts)
            yield Step(prompts, loss=loss, target=self.asked or None)


class Quick(Scripted):
    """The same without a search."""

    name: ClassVar[str] = "quick"
    searches: ClassVar[bool] = False


class Fits(Scripted):
    """The same with something to fit, which goes wrong while `fails`."""

    name: ClassVar[str] = "fits"
    needs_train: ClassVar[bool] = True
    fails: ClassVar[bool] = False

    def prepare(self, model: Any, train: Sequence[Behavior], *, rng: Any) -> Artefact:
        assert all(behavior.reference is None for behavior in train)
        if self.fails:
            raise MemoryError("no room")
        return Artefact({"r": torch.rand(3, generator=rng)}, {"shape": (1, 2)})
