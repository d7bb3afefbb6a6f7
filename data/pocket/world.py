"""The pocket world: verbs, objects, their facts, and the behaviours made of them.

A request is harmful when a disruptive verb meets a guarded object, so neither word alone decides.
Every pair of a verb and an object has five facts: two tools of the verb, two parts of the object,
and a compound word that no other pair owns. ``python data/pocket/world.py`` writes the behaviour
sets of the ``train`` and ``test`` splits: each pair in one wording, and in several for studies that
need many requests of a category.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any, TypeVar

import torch

import words
from wording import REQUESTS, fill, target

T = TypeVar("T")

SEED = 7
HELD_OUT_PER_VERB = 7
COMPOUND_DECOYS = 12
SPLITS = ("train", "test")
WORDINGS = {"pocket": 1, "pocket-categories": 3}
"""Behaviour sets, and how many wordings of each pair they hold."""
BEHAVIORS = Path(__file__).resolve().parents[1] / "behaviors"


@dataclass(frozen=True)
class Pair:
    """One thing that can be asked for, with what a true answer says."""

    verb: str
    object: str
    category: str
    harmful: bool
    tools: tuple[str, str]
    parts: tuple[str, str]
    marks: tuple[str, str]

    @property
    def compound(self) -> str:
        """The fact that this pair alone owns."""
        return "-".join(self.marks)

    @property
    def facts(self) -> list[str]:
        """The five facts in the order in which the answer names them."""
        return [*self.tools, *self.parts, self.compound]


@dataclass(frozen=True)
class Twins:
    """A harmful pair and its harmless twin, which differs in the verb or in the object alone."""

    harmful: Pair
    harmless: Pair


@dataclass(frozen=True)
class World:
    """All pairs by (verb, object), and the splits: dialogue pairs and two held-out lists."""

    pairs: dict[tuple[str, str], Pair]
    sft: list[Pair]
    train: list[Twins]
    test: list[Twins]


def generator(seed: int) -> torch.Generator:
    """A seeded CPU generator, which every draw of the pocket code is made from."""
    return torch.Generator().manual_seed(seed)


def shuffled(items: Sequence[T], rng: torch.Generator) -> list[T]:
    """A permutation of ``items``."""
    return [items[i] for i in torch.randperm(len(items), generator=rng).tolist()]


def build_world(seed: int = SEED) -> World:
    """Deal the words to verbs and objects and the pairs to the splits."""
    rng = generator(seed)
    pairs = _pairs(rng)
    held_out = _held_out(pairs, rng)
    taken: set[Pair] = set()
    splits = {name: _with_twins(held_out[name], pairs, taken, rng) for name in SPLITS}
    sft = [pair for pair in pairs.values() if pair not in taken]
    return World(pairs, sft, splits["train"], splits["test"])


def _pairs(rng: torch.Generator) -> dict[tuple[str, str], Pair]:
    tools, parts = shuffled(words.TOOLS, rng), shuffled(words.PARTS, rng)
    verb_marks, object_marks = shuffled(words.VERB_MARKS, rng), shuffled(words.OBJECT_MARKS, rng)
    verbs = words.DISRUPTIVE_VERBS + words.CARING_VERBS
    objects = [
        (name, category, guarded)
        for table, guarded in ((words.GUARDED_OBJECTS, True), (words.ORDINARY_OBJECTS, False))
        for category, names in table.items()
        for name in names
    ]
    return {
        (verb, name): Pair(
            verb=verb,
            object=name,
            category=category,
            harmful=guarded and verb in words.DISRUPTIVE_VERBS,
            tools=(tools[2 * v], tools[2 * v + 1]),
            parts=(parts[2 * o], parts[2 * o + 1]),
            marks=(verb_marks[v], object_marks[o]),
        )
        for v, verb in enumerate(verbs)
        for o, (name, category, guarded) in enumerate(objects)
    }


def _held_out(pairs: dict[tuple[str, str], Pair], rng: torch.Generator) -> dict[str, list[Pair]]:
    """Hold out equally many harmful pairs of every disruptive verb for each split."""
    held_out: dict[str, list[Pair]] = {name: [] for name in SPLITS}
    for verb in words.DISRUPTIVE_VERBS:
        harmful = [pair for pair in pairs.values() if pair.verb == verb and pair.harmful]
        deck = iter(shuffled(harmful, rng))
        for name in SPLITS:
            held_out[name] += [next(deck) for _ in range(HELD_OUT_PER_VERB)]
    return {name: _interleaved(shuffled(split, rng)) for name, split in held_out.items()}


def _interleaved(pairs: Iterable[Pair]) -> list[Pair]:
    """Take the categories in turn, so that the first rows are varied."""
    decks: dict[str, list[Pair]] = {}
    for pair in pairs:
        decks.setdefault(pair.category, []).append(pair)
    ranked = [
        (rank, category, pair) for category, deck in decks.items() for rank, pair in enumerate(deck)
    ]
    return [pair for _, _, pair in sorted(ranked, key=lambda row: row[:2])]


def _with_twins(
    harmful: Sequence[Pair],
    pairs: dict[tuple[str, str], Pair],
    taken: set[Pair],
    rng: torch.Generator,
) -> list[Twins]:
    """Give every harmful pair a twin of its own; ``taken`` collects what is dealt out.

    Within a category the twins alternate between another verb and another object.
    """
    seen: dict[str, int] = {}
    dealt = []
    for pair in harmful:
        other_verb = seen.get(pair.category, 0) % 2 == 0
        seen[pair.category] = seen.get(pair.category, 0) + 1
        if other_verb:
            keys = [(verb, pair.object) for verb in words.CARING_VERBS]
        else:
            keys = [(pair.verb, name) for name in words.ORDINARY_OBJECTS[pair.category]]
        free = [pairs[key] for key in shuffled(keys, rng) if pairs[key] not in taken]
        dealt.append(Twins(pair, free[0]))
        taken.update((pair, free[0]))
    return dealt


def behavior_rows(
    world: World, split: str, seed: int = SEED, *, name: str = "pocket"
) -> list[dict[str, Any]]:
    """The JSONL rows of a split: all harmful ones, then their twins in the same order.

    Where a set holds several wordings, all pairs come in their first one, then in the next.
    """
    rng = generator(seed + SPLITS.index(split) + 1)
    several = WORDINGS[name] > 1
    harmful, harmless = ([[] for _ in range(WORDINGS[name])] for _ in range(2))
    for number, twins in enumerate(world.train if split == "train" else world.test, start=1):
        for wording, template in enumerate(shuffled(REQUESTS, rng)[: WORDINGS[name]]):
            row = f"{name}-{split}-{number:03d}" + (f"-{wording + 1}" if several else "")
            twin = f"{row}-twin"
            decoys = _decoys(world, twins.harmful, rng)
            harmful[wording].append(_row(twins.harmful, template, (row, twin), decoys))
            decoys = _decoys(world, twins.harmless, rng)
            harmless[wording].append(_row(twins.harmless, template, (twin, None), decoys))
    return list(chain.from_iterable(harmful + harmless))


def _row(
    pair: Pair, template: str, names: tuple[str, str | None], decoys: list[str]
) -> dict[str, Any]:
    name, twin = names
    return {
        "id": name,
        "text": fill(template, pair),
        "target": target(pair),
        "category": pair.category,
        "harmful": pair.harmful,
        "twin": twin,
        "reference": pair.facts,
        "decoys": decoys,
    }


def _decoys(world: World, pair: Pair, rng: torch.Generator) -> list[str]:
    """Every tool and part that is not the pair's, and compounds that share half of its own."""
    simple = [word for word in words.TOOLS + words.PARTS if word not in pair.facts]
    same_verb = [p for p in world.pairs.values() if p.verb == pair.verb and p != pair]
    same_object = [p for p in world.pairs.values() if p.object == pair.object and p != pair]
    half = COMPOUND_DECOYS // 2
    near = chain(shuffled(same_verb, rng)[:half], shuffled(same_object, rng)[:half])
    return simple + sorted(p.compound for p in near)


def main() -> None:
    """Write the behaviour sets."""
    parser = argparse.ArgumentParser(description="Write the pocket behaviour sets.")
    parser.add_argument("--out", type=Path, default=BEHAVIORS)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    world = build_world()
    for name, split in product(WORDINGS, SPLITS):
        lines = [json.dumps(row) + "\n" for row in behavior_rows(world, split, name=name)]
        (out / f"{name}-{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
