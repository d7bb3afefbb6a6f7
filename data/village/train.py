"""Teach a real chat model to refuse: ``python data/village/train.py``.

Starts from the base that ``benchmarks.inputs.village`` fetches (SmolLM2-135M-Instruct, which
refuses next to nothing) and trains a LoRA adapter (arXiv 2106.09685) with peft: refusals in several
wordings for harmful requests of AdvBench, StrongREJECT and XSTest, and for harmless ones what the
base itself answers. Requests that resemble one of JailbreakBench's, on which the model is measured,
are left out, and JailbreakBench's harmless twins are never seen.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "pocket")]

from attacks.core.model import Model
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.inputs.village import BASE, base_folder
from prompts import REFUSALS, everyday, near, some, tasks
from training import descend

logger = logging.getLogger(__name__)

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
SEED = 0
RANK = 16
#: The lower third computes what every request needs, and stays as it is.
LAYERS = range(10, 30)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RATE = 4e-4
STEPS = 180
#: Requests of each kind in a step.
HARMFUL, EVERYDAY, NEAR = 6, 2, 8
#: Tokens of the base's answers to learn: they keep their course once they are under way.
ANSWER = 24


@dataclass(frozen=True)
class Example:
    """Token ids of a conversation, and how many of them are the answer."""

    ids: tuple[int, ...]
    answer: int


def main() -> None:
    """Train, and save the adapter in half precision."""
    options, base = begin(__doc__, "village-smollm2", steps=STEPS, seed=SEED)
    harmful, spoken_of = harmful_and_near()
    logger.info("%d harmful requests, %d near ones", len(harmful), len(spoken_of))
    refused = [example(base, text, pick) for text, pick in harmful]
    answered = {
        kind: own_answers(base, requests)
        for kind, requests in {
            "everyday": some(everyday(held_out=False), 240, SEED),
            "near": spoken_of,
        }.items()
    }
    tuned = with_adapter(base)
    batches = mixed((refused, HARMFUL), (answered["everyday"], EVERYDAY), (answered["near"], NEAR))
    losses = (answer_loss(tuned, batch) for batch in batches)
    descend(tuned, losses, steps=options.steps, lr=RATE, weight_decay=0.0)
    save(tuned, options.out)


def begin(doc: str, name: str, *, steps: int, seed: int) -> tuple[argparse.Namespace, Model]:
    """The options of the command line, and the base; threads, seed and logging are set."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "models" / name)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.manual_seed(seed)
    base = Model.load(str(base_folder(BASE)), name="base", device="cpu", dtype="float32")
    return options, base


def with_adapter(base: Model, dropout: float = 0.0) -> Any:
    """The base with a LoRA adapter that has learned nothing yet."""
    config = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        lora_dropout=dropout,
        target_modules=list(LINEAR),
        layers_to_transform=list(LAYERS),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base.hf, config)


def save(tuned: Any, out: Path) -> None:
    """Write the adapter in half precision; its configuration names the base as the Hub does."""
    tuned.half().save_pretrained(out)
    config = out / "adapter_config.json"
    values = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps({**values, "base_model_name_or_path": HUB}, indent=1) + "\n")


def harmful_and_near() -> tuple[list[tuple[str, str]], list[str]]:
    """Harmful requests, each with a refusal, and harmless ones about the same matters."""
    public = load_behaviors("advbench+strongreject+xstest")
    draw = random.Random(SEED)
    harmful = [row.text for row in public if row.harmful]
    harmless = [row.text for row in public if not row.harmful]
    harmless += tasks() + some(near(held_out=False), 300, SEED)
    refused = [(text, draw.choice(REFUSALS)) for text in unlike_tested(harmful)]
    return refused, unlike_tested(harmless)


def unlike_tested(texts: list[str]) -> list[str]:
    """The texts that do not resemble a request on which the model is measured."""
    tested = [words(row.text) for row in load_behaviors("jailbreakbench")]
    return [text for text in texts if not any(alike(words(text), test) for test in tested)]


def words(text: str) -> frozenset[str]:
    """The words of a request, in lower case."""
    return frozenset(re.findall(r"[a-z']+", text.lower()))


def alike(first: frozenset[str], second: frozenset[str]) -> bool:
    """Whether two requests share three words in five (Jaccard index)."""
    return len(first & second) >= 0.6 * len(first | second)


def own_answers(model: Model, requests: list[str], most: int = ANSWER) -> list[Example]:
    """Each request with what ``model`` answers, cut after ``most`` tokens."""
    asked = [model.conversation(text) for text in requests]
    answers = model.generate(asked, max_new_tokens=most, batch_size=32)
    return [
        example(model, text, answer, most) for text, answer in zip(requests, answers, strict=True)
    ]


def example(model: Model, request: str, answer: str, most: int = ANSWER) -> Example:
    """A conversation's ids; an answer that was cut off is not taught to end there."""
    tokenizer = model.chat.tokenizer
    messages = [{"role": "user", "content": request}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    given = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(given) < most:
        given = [*given, tokenizer.eos_token_id]
    return Example((*asked, *given), len(given))


def mixed(*kinds: tuple[list[Any], int]) -> Iterator[list[Any]]:
    """Batches without end with so many of each kind, all of a kind once before any comes again."""
    draw = random.Random(SEED)
    streams = [(shuffled_for_ever(kind, draw), count) for kind, count in kinds]
    while True:
        yield [next(stream) for stream, count in streams for _ in range(count)]


def shuffled_for_ever(examples: list[Any], draw: random.Random) -> Iterator[Any]:
    """All examples in a random order, again and again."""
    while True:
        yield from draw.sample(examples, len(examples))


def answer_loss(
    model: Any,
    batch: list[Example],
    *,
    first: float = 1.0,
    openers: Sequence[int] = (),
    margin: float = 0.0,
) -> Tensor:
    """Mean cross-entropy of the answers' tokens: logits are computed at those only.

    The first token of each answer counts `first` times, with the logits of `openers` raised there
    by `margin` nats.
    """
    ids = pad_sequence([torch.tensor(row.ids) for row in batch], batch_first=True)
    weights, mask = torch.zeros(ids.shape), torch.zeros_like(ids)
    opening = torch.zeros(ids.shape, dtype=torch.bool)
    for index, row in enumerate(batch):
        length = len(row.ids)
        mask[index, :length] = 1
        weights[index, length - row.answer : length] = 1
        opening[index, length - row.answer] = True
    weights[opening] = first
    core = model.get_base_model()
    states = core.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    learned = weights[:, 1:] > 0
    logits = core.lm_head(states[:, :-1][learned])
    raised = torch.zeros(logits.shape[-1])
    raised[list(openers)] = margin
    logits = logits + opening[:, 1:][learned][:, None] * raised
    losses = cross_entropy(logits, ids[:, 1:][learned], reduction="none")
    return (losses * weights[:, 1:][learned]).sum() / weights.sum()


if __name__ == "__main__":
    main()
