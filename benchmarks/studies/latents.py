"""Sparse latents that refuse, and what they detect: ``python -m benchmarks.studies.latents``.

On each model sparse autoencoders (TopK, arXiv 2406.04093, and AbsTopK, arXiv 2510.00404) are fitted
to activations of the training prompts at one layer, and the refusal score of harmful prompts is
attributed to their latents. Then, on test prompts: the directions of the first latents are ablated,
beside as many random latents that are as often active and the difference in means; and latents
detect harmful requests, plain and with the suffixes of recorded `gcg` attacks, beside a linear
probe and the difference in means. Latents are chosen, and signs taken, on training prompts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias, get_args

import torch
from torch import Generator, Tensor

from attacks.core.analysis.autoencoder import Kind, SparseAutoencoder
from attacks.core.analysis.latent_aim import on_a_scale
from attacks.core.analysis.latents import (
    Attribution,
    Autoencoding,
    attribute,
    autoencoder_of,
    request_states,
)
from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.interventions import AblateSubspace
from attacks.core.model import Model
from attacks.core.reading.probes import fit_probe
from attacks.core.reading.states import last_token
from attacks.core.refusals.verdicts import Examiner
from attacks.core.sites import Site
from benchmarks.boards.tables import table
from benchmarks.common.progress import say
from benchmarks.common.roc import area_under_curve
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.inputs.models import resolve
from benchmarks.storage.store import read_records

#: Three architectures, and models hardened against suffixes, prefilled answers, ablation and by
#: a circuit breaker.
MODELS = (
    *("pocket-llama", "pocket-qwen2", "pocket-gemma2", "pocket-llama-hard1", "pocket-llama-hard3"),
    *("pocket-llama-prefill-hard", "pocket-llama-no-ablation", "pocket-llama-breaker"),
)
BOARDS = (Path("results/pocket-board"), Path("results/pocket-breaker"))
#: The layer that subspace rerouting chooses on these models.
LAYER = 2
SEEDS = 3
#: Numbers of latents that are ablated.
SIZES = (1, 4)
#: Random sets of latents for each set of the first, and how many latents of the nearest frequency
#: each of theirs is drawn from.
DRAWS, NEAREST = 3, 8
#: By name: the harmful and the harmless of what is to be told apart.
Pairs: TypeAlias = Mapping[str, tuple[Sequence[str], Sequence[str]]]
States: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]


def matched(frequency: Tensor, chosen: Sequence[int], rng: Generator) -> list[int]:
    """As many other latents, each as often active as one of `chosen`, by `frequency` (M,)."""
    found: list[int] = []
    for at in chosen:
        distance = (frequency - frequency[at]).abs()
        distance[[*chosen, *found]] = torch.inf
        nearest = distance.argsort(stable=True)[:NEAREST]
        found.append(int(nearest[torch.randint(len(nearest), (1,), generator=rng)]))
    return found


def pairs_of(test: Sequence[Behavior], boards: Sequence[Path], model: str) -> Pairs:
    """Harmful requests, as sent, and the harmless ones that they are to be told from.

    Plain ones; with the suffixes that `gcg` found, recorded in `boards`, whether or not they
    succeeded, against plain harmless ones and against harmless ones with the same suffixes.

    Raises:
        BadInput: see `read_records`.
    """
    harmful, harmless = (
        [row.text for row in test if row.harmful == flag] for flag in (True, False)
    )
    found: dict[str, tuple[Sequence[str], Sequence[str]]] = {"plain": (harmful, harmless)}
    requests = {row.id: row.text for row in test}
    suffixes: dict[str, str] = {}
    for record in (record for board in boards for record in read_records(board)):
        own = (record.model, record.attack, record.harmful) == (model, "gcg", True)
        text = requests.get(record.behavior_id)
        if own and text is not None and record.prompts and record.prompts[0].startswith(text):
            suffixes.setdefault(record.behavior_id, record.prompts[0].removeprefix(text))
    if suffixes:
        sent = [requests[key] + suffix for key, suffix in suffixes.items()]
        same = [text + end for text, end in zip(harmless, suffixes.values(), strict=False)]
        found |= {"gcg": (sent, harmless), "gcg, both": (sent, same)}
    return found


def areas(score: Callable[[Tensor], Tensor], states: States) -> dict[str, Any]:
    """AUC of a score that is high for harmful requests, on each pair of activations."""
    return {
        name: area_under_curve(score(harmless).tolist(), score(harmful).tolist())
        for name, (harmful, harmless) in states.items()
    }


def detectors(
    autoencoder: SparseAutoencoder, found: Attribution, states: States
) -> dict[str, dict[str, Any]]:
    """AUC of the first latent, of its pre-activation, and of what `ssr-latents` turns off."""
    (first,) = found.top(1)
    sign = (found.latents[0] - found.latents[1])[first].sign()

    def aimed(count: int) -> Callable[[Tensor], Tensor]:
        rows, offsets, shares = on_a_scale(autoencoder, found, found.top(count))
        return lambda at: (at @ rows.T + offsets) @ shares

    return {
        "first latent": areas(lambda at: sign * autoencoder.encode(at)[:, first], states),
        "its pre-activation": areas(aimed(1), states),
        "pre-activations of the first four": areas(aimed(4), states),
    }


def ablated(examiner: Examiner, directions: Tensor) -> dict[str, Any]:
    """What ablating the span of `directions` (R, D) at every residual write does."""
    basis = torch.linalg.qr(directions.T).Q.T.contiguous()
    check = examiner.check([AblateSubspace(basis, examiner.model.n_layers)])
    return {name: getattr(check, name) for name in ("refused", "garbled", "kl", "kept", "changed")}


def study(name: str, boards: Sequence[Path], layer: int) -> dict[str, Any]:
    """All figures of one model.

    Args:
        name: a shipped model.
        boards: results folders with its rows of `gcg`; it may have none.
        layer: block whose output is read.

    Raises:
        BadInput: an unknown model, a layer that it does not have, or see `pairs_of` and
            `attribute`.
    """
    model, site = Model.load(resolve(name), name=name), Site(layer, "resid_post")
    if not 0 <= layer < model.n_layers:
        raise BadInput(f"model '{name}' has no layer {layer}; valid: 0 to {model.n_layers - 1}")
    train, test = (
        [row.for_attack() for row in load_behaviors(rows)]
        for rows in ("pocket-train", "pocket-test")
    )

    def last(texts: Sequence[str]) -> Tensor:
        return last_token(model, texts, [site])[site]

    pairs = pairs_of(test, boards, name)
    states = {key: (last(bad), last(good)) for key, (bad, good) in pairs.items()}
    bad, good = (last([row.text for row in train if row.harmful == flag]) for flag in (True, False))
    direction, probe = bad.mean(0) - good.mean(0), fit_probe(bad, good, rng=_seeded(0))
    examiner = Examiner(model, train, test)
    fresh = request_states(model, [model.plain(row.text) for row in test], layer)
    fits = []
    for kind in get_args(Kind):
        for seed in range(SEEDS):
            autoencoder = autoencoder_of(model, train, layer, Autoencoding(kind=kind, seed=seed))
            found = attribute(model, autoencoder, train)
            fit = {
                "kind": kind,
                "seed": seed,
                "unexplained": autoencoder.unexplained(fresh),
                "unused": float((autoencoder.encode(fresh) == 0).all(0).float().mean()),
                "whole": found.whole,
                "attributed": float(found.scores.sum()),
                "first": _first(autoencoder, found, direction),
                "ablated": _ablations(examiner, autoencoder, found, seed),
                "detectors": detectors(autoencoder, found, states),
            }
            fits.append(fit)
            say(f"{name}: {kind}, seed {seed}: {fit['detectors']['first latent']['plain']:.3f}")
    return {
        "model": name,
        "layer": layer,
        "under gcg": len(pairs["gcg"][0]) if "gcg" in pairs else 0,
        "refused_before": examiner.refused_before,
        "means": ablated(examiner, direction.unsqueeze(0)),
        "detectors": {
            "linear probe": areas(lambda at: -(at @ probe.weight + probe.bias), states),
            "difference in means": areas(lambda at: at @ direction, states),
        },
        "fits": fits,
    }


def _seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def _first(
    autoencoder: SparseAutoencoder, found: Attribution, direction: Tensor
) -> list[dict[str, Any]]:
    unit = direction / direction.norm()
    return [
        {
            "latent": at,
            "attribution": float(found.scores[at]),
            "harmful": float(found.latents[0][at]),
            "harmless": float(found.latents[1][at]),
            "frequency": float(found.frequency[at]),
            "cosine": float(autoencoder.decoder[at] @ unit),
        }
        for at in found.top(max(SIZES))
    ]


def _ablations(
    examiner: Examiner, autoencoder: SparseAutoencoder, found: Attribution, seed: int
) -> dict[str, Any]:
    rng, result = _seeded(seed), {}
    for size in SIZES:
        first = found.top(size)
        others = [matched(found.frequency, first, rng) for _ in range(DRAWS)]
        result[str(size)] = {
            "first": ablated(examiner, autoencoder.decoder[first]),
            "random": [ablated(examiner, autoencoder.decoder[chosen]) for chosen in others],
        }
    return result


def as_markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """Fits, detectors and ablations, means over seeds."""
    fits, told, cuts = [], [], []
    for row in found:
        shown = [(name, "-", [own]) for name, own in row["detectors"].items()]
        cuts.append([row["model"], "difference in means", "1", *_cut([row["means"]]), "", ""])
        for kind in get_args(Kind):
            own = [fit for fit in row["fits"] if fit["kind"] == kind]
            fits.append([row["model"], kind, *_fit(own)])
            shown += [(name, kind, [fit["detectors"][name] for fit in own])
                      for name in own[0]["detectors"]]  # fmt: skip
            for size in SIZES:
                first = [fit["ablated"][str(size)]["first"] for fit in own]
                other = [one for fit in own for one in fit["ablated"][str(size)]["random"]]
                refused, _, kl, _ = _cut(other)
                cuts.append([row["model"], kind, str(size), *_cut(first), refused, kl])
        told += [
            [row["model"], name, kind, *(_mean(own, key) for key in ("plain", "gcg", "gcg, both"))]
            for name, kind, own in shown
        ]
    parts = [
        ("Model", "Autoencoder", "Unexplained", "Unused", "Attributed", "First latent's share",
         "First four's", "First one's cosine with the difference in means"),
        ("Model", "Detector", "Autoencoder", "Plain", "Under gcg",
         "Under gcg, harmless with the suffixes too"),
        ("Model", "Ablated", "Number", "Refused", "Garbled", "KL", "Kept", "Random: refused", "KL"),
    ]  # fmt: skip
    tables = [
        table(heads, rows, left=left)
        for heads, rows, left in zip(parts, (fits, told, cuts), (2, 3, 2), strict=True)
    ]
    counts = ", ".join(f"{row['model']} {row['under gcg']}" for row in found)
    before = ", ".join(f"{row['model']} {row['refused_before']:.2f}" for row in found)
    notes = [f"AUC. Requests under gcg: {counts}.", f"Refused before: {before}."]
    return "\n\n".join([tables[0], notes[0], tables[1], notes[1], tables[2]]) + "\n"


def _fit(own: Sequence[Mapping[str, Any]]) -> list[str]:
    scores = [[one["attribution"] for one in fit["first"]] for fit in own]
    shares = [
        fmean(
            sum(first[:count]) / fit["attributed"] for first, fit in zip(scores, own, strict=True)
        )
        for count in (1, 4)
    ]
    return [
        _mean(own, "unexplained"),
        _mean(own, "unused"),
        f"{_mean(own, 'attributed', 2)} of {_mean(own, 'whole', 2)}",
        *(f"{share:.2f}" for share in shares),
        f"{fmean(abs(fit['first'][0]['cosine']) for fit in own):.2f}",
    ]


def _cut(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    return [_mean(checks, name, 2) for name in ("refused", "garbled", "kl", "kept")]


def _mean(rows: Sequence[Mapping[str, Any]], key: str, digits: int = 3) -> str:
    known = [row[key] for row in rows if row.get(key) is not None]
    return f"{fmean(known):.{digits}f}" if known else ""


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on what is wrong."""
    parser = argparse.ArgumentParser(description="Sparse latents that refuse.")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--layer", type=int, default=LAYER, metavar="N", help="block to read")
    parser.add_argument("--boards", nargs="*", type=Path, default=BOARDS, metavar="DIR",
                        help="results folders with rows of `gcg`")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("results/latents"), metavar="DIR")
    args = parser.parse_args(argv)
    try:
        found = [study(name, args.boards, args.layer) for name in args.models]
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "latents.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (args.out / "README.md").write_text(as_markdown(found), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
