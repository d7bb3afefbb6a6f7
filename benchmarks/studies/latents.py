"""Which sparse latents refuse, and what they are good for: ``python -m benchmarks.studies.latents``.

On each model sparse autoencoders (TopK and AbsTopK, arXiv 2510.00404) are fitted to activations of
the training prompts at one layer, and the refusal score of harmful prompts is attributed to their
latents. Then, on test prompts: the first latents' directions are ablated, beside as many random
latents that are as often active and the difference in means; and the latents are detectors of
harmful requests, plain and with the suffixes of recorded `gcg` attacks, beside the projection on
the difference in means and Latent Guard.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import torch
from torch import Generator, Tensor

from attacks.core.analysis.autoencoder import Kind, SparseAutoencoder
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
from attacks.core.reading.states import last_token
from attacks.core.refusals.verdicts import Check, Examiner
from attacks.core.sites import Site
from benchmarks.boards.tables import table
from benchmarks.common.progress import say
from benchmarks.common.roc import area_under_curve
from benchmarks.defenses.latent_guard import LatentGuard
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.inputs.models import resolve
from benchmarks.storage.store import read_records

MODELS = ("pocket-llama", "pocket-qwen2", "pocket-gemma2", "pocket-llama-hard1")
#: The layer that subspace rerouting chooses on these models.
LAYER = 2
SEEDS = 3
#: Numbers of latents that are ablated, and that a detector adds up.
SIZES, DETECTING = (1, 2, 4, 8), (1, 4)
#: Random sets of latents for each set of the first, and how many latents of the nearest frequency
#: each of theirs is drawn from.
DRAWS, NEAREST = 4, 8
#: What harmful requests are told from: what was sent, and what of it was recorded.
Texts = Mapping[str, tuple[Sequence[str], Sequence[str]]]


def matched(frequency: Tensor, chosen: Sequence[int], rng: Generator) -> list[int]:
    """As many other latents, each as often active as one of `chosen`, by `frequency` (M,)."""
    found: list[int] = []
    for at in chosen:
        distance = (frequency - frequency[at]).abs()
        distance[[*chosen, *found]] = torch.inf
        nearest = distance.argsort(stable=True)[:NEAREST]
        found.append(int(nearest[torch.randint(len(nearest), (1,), generator=rng)]))
    return found


def ablated(examiner: Examiner, directions: Tensor) -> dict[str, Any]:
    """What ablating the span of `directions` (R, D) at every residual write does."""
    basis = torch.linalg.qr(directions.T).Q.T.contiguous()
    return _figures(examiner.check([AblateSubspace(basis, examiner.model.n_layers)]))


def _figures(check: Check) -> dict[str, Any]:
    names = ("refused", "garbled", "kl", "kept", "changed")
    return {name: getattr(check, name) for name in names}


def texts_of(test: Sequence[Behavior], board: Path, model: str) -> Texts:
    """By name: harmful requests, as sent, and the harmless ones that they are to be told from.

    Plain ones; with the suffixes that `gcg` found, recorded in `board`, against plain harmless ones
    and against harmless ones with the same suffixes, which only harm tells apart.
    """
    harmful, harmless = ([row.text for row in test if row.harmful == flag] for flag in (1, 0))
    found: dict[str, tuple[Sequence[str], Sequence[str]]] = {"plain": (harmful, harmless)}
    requests = {row.id: row.text for row in test}
    sent = {
        record.behavior_id: record.prompts[0]
        for record in read_records(board)
        if (record.model, record.attack) == (model, "gcg") and record.harmful and record.prompts
    }
    attacked = [sent[key] for key in requests if key in sent]
    suffixes = [sent[key].removeprefix(text) for key, text in requests.items() if key in sent]
    if attacked:
        same = [text + suffix for text, suffix in zip(harmless, suffixes, strict=False)]
        found |= {"gcg": (attacked, harmless), "gcg, both": (attacked, same)}
    return found


def areas(score: Callable[[Sequence[str]], Sequence[float]], texts: Texts) -> dict[str, Any]:
    """AUC of a score that is high for harmful requests, on each pair of texts."""
    return {
        name: area_under_curve(list(score(harmless)), list(score(harmful)))
        for name, (harmful, harmless) in texts.items()
    }


def detector(
    model: Model, autoencoder: SparseAutoencoder, found: Attribution, count: int, *, kept: bool
) -> Callable[[Sequence[str]], Sequence[float]]:
    """The first `count` latents added up, by their shares of the attribution.

    Each on the scale where the mean of harmful training prompts is 1 and that of harmless ones 0.
    `kept`: latents, most of which are 0 for any one prompt; otherwise their pre-activations.
    """
    chosen, site = found.top(count), Site(autoencoder.layer, "resid_post")
    shares = found.scores[chosen] / found.scores[chosen].sum()
    harmful, harmless = (side[chosen] for side in (found.latents if kept else found.pre))

    def score(texts: Sequence[str]) -> Sequence[float]:
        states = last_token(model, texts, [site])[site]
        values = (autoencoder.encode(states) if kept else autoencoder.pre(states))[:, chosen]
        levels = (values - harmless) / (harmful - harmless)
        return [float(level) for level in (levels * shares).sum(1)]

    return score


def study(name: str, board: Path, layer: int, save: Path | None) -> dict[str, Any]:
    """All figures of one model.

    Args:
        name: a shipped model.
        board: results folder with its rows of `gcg`.
        layer: block whose output is read.
        save: folder for the autoencoders of the first seed.

    Raises:
        BadInput: an unknown model, or a layer that it does not have.
    """
    model = Model.load(resolve(name), name=name)
    if not 0 <= layer < model.n_layers:
        raise BadInput(f"model '{name}' has no layer {layer}; valid: 0 to {model.n_layers - 1}")
    train, test = (
        [row.for_attack() for row in load_behaviors(rows)]
        for rows in ("pocket-train", "pocket-test")
    )
    examiner, texts = Examiner(model, train, test), texts_of(test, board, name)
    fresh = request_states(model, [model.plain(row.text) for row in test], layer)
    site = Site(layer, "resid_post")
    means = [
        last_token(model, [row.text for row in train if row.harmful == flag], [site])[site].mean(0)
        for flag in (True, False)
    ]
    direction = means[0] - means[1]
    result: dict[str, Any] = {
        "model": name,
        "layer": layer,
        "refused_before": examiner.refused_before,
        "harmful": len(examiner.harmful),
        "harmless": len(examiner.harmless),
        "means": ablated(examiner, direction.unsqueeze(0)),
        "detectors": {"difference in means": areas(_along(model, site, direction), texts)},
        "fits": [],
    }
    for token in ("instruction", "last"):
        guard = LatentGuard(token=token)
        result["detectors"][f"latent-guard, {token} token"] = areas(
            _guarding(model, guard, train), texts
        )
    for kind in get_args(Kind):
        for seed in range(SEEDS):
            how = Autoencoding(kind=kind, seed=seed)
            autoencoder = autoencoder_of(model, train, layer, how)
            if save and not seed:
                save.mkdir(parents=True, exist_ok=True)
                autoencoder.save(save / f"{name}-{kind}.safetensors")
            found = attribute(model, autoencoder, train)
            result["fits"].append(
                {
                    **{"kind": kind, "seed": seed, "k": how.k, "latents": how.latents},
                    "unexplained": autoencoder.unexplained(fresh),
                    "unused": float((autoencoder.encode(fresh) == 0).all(0).float().mean()),
                    **_latents(model, examiner, autoencoder, found, texts, seed, direction),
                }
            )
            one = result["fits"][-1]["ablated"]["4"]
            say(f"{name}: {kind}, seed {seed}: {one['first']['refused']:.2f} refused")
    return result


def _along(
    model: Model, site: Site, direction: Tensor
) -> Callable[[Sequence[str]], Sequence[float]]:
    return lambda texts: (last_token(model, texts, [site])[site] @ direction).tolist()


def _guarding(
    model: Model, guard: LatentGuard, train: Sequence[Behavior]
) -> Callable[[Sequence[str]], Sequence[float]]:
    fitted = guard.fit(model, train, rng=Generator().manual_seed(0))

    def score(texts: Sequence[str]) -> Sequence[float]:
        asked = [model.conversation(text) for text in texts]
        return guard.scores(fitted, fitted.data["layers"], model, asked)

    return score


def _latents(
    model: Model,
    examiner: Examiner,
    autoencoder: SparseAutoencoder,
    found: Attribution,
    texts: Texts,
    seed: int,
    direction: Tensor,
) -> dict[str, Any]:
    """The first latents, what ablating them or others does, and their AUC."""
    first = found.top(max(SIZES))
    unit = direction / direction.norm()
    rng = Generator().manual_seed(seed)
    ablations = {}
    for size in SIZES:
        others = [matched(found.frequency, first[:size], rng) for _ in range(DRAWS)]
        ablations[str(size)] = {
            "first": ablated(examiner, autoencoder.decoder[first[:size]]),
            "random": [ablated(examiner, autoencoder.decoder[chosen]) for chosen in others],
        }
    detectors = {
        f"{count}, {'latents' if kept else 'pre-activations'}": areas(
            detector(model, autoencoder, found, count, kept=kept), texts
        )
        for count in DETECTING
        for kept in (True, False)
    }
    return {
        "first": [
            {
                "latent": at,
                "attribution": float(found.scores[at]),
                "harmful": float(found.latents[0][at]),
                "harmless": float(found.latents[1][at]),
                "frequency": float(found.frequency[at]),
                "cosine": float(autoencoder.decoder[at] @ unit),
            }
            for at in first
        ],
        "attributed": float(found.scores.sum()),
        "whole": found.whole,
        "ablated": ablations,
        "detectors": detectors,
    }


def as_markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """Fits, ablations and detectors, means over seeds."""
    fits, cuts, told = [], [], []
    for row in found:
        control = row["means"]
        cuts.append([row["model"], "difference in means", "1", *_cut([control]), "", "", ""])
        for kind in get_args(Kind):
            own = [fit for fit in row["fits"] if fit["kind"] == kind]
            fits.append([row["model"], kind, *_fit(own)])
            for size in SIZES:
                first = [fit["ablated"][str(size)]["first"] for fit in own]
                other = [one for fit in own for one in fit["ablated"][str(size)]["random"]]
                least = f"{min(one['refused'] for one in other):.2f}"
                refused, _, kl, _ = _cut(other)
                cuts.append([row["model"], kind, str(size), *_cut(first), refused, least, kl])
        shown = list(row["detectors"].items())
        for kind in get_args(Kind):
            own = [fit["detectors"] for fit in row["fits"] if fit["kind"] == kind]
            shown += [
                (f"{kind}: {name}", {key: _mean([one[name] for one in own], key) for key in areas_})
                for name, areas_ in own[0].items()
            ]
        told += [
            [row["model"], name, *(_figure(own.get(key)) for key in ("plain", "gcg", "gcg, both"))]
            for name, own in shown
        ]
    parts = [
        ("Model", "Autoencoder", "Unexplained", "Unused", "Attributed", "First latent's share",
         "First four's", "Sign flips"),
        ("Model", "Ablated", "Number", "Refused", "Garbled", "KL", "Kept", "Random: refused",
         "At least", "KL"),
        ("Model", "Detector", "Plain", "Under gcg", "Under gcg, harmless with the suffixes too"),
    ]  # fmt: skip
    tables = [
        table(heads, rows, left=2) for heads, rows in zip(parts, (fits, cuts, told), strict=True)
    ]
    before = ", ".join(f"{row['model']} {row['refused_before']:.2f}" for row in found)
    return "\n\n".join([tables[0], f"Refused before: {before}.", *tables[1:]]) + "\n"


def _fit(own: Sequence[Mapping[str, Any]]) -> list[str]:
    scores = [[one["attribution"] for one in fit["first"]] for fit in own]
    # How often a latent has opposite signs on harmful and on harmless prompts, in the mean.
    both = [one["harmful"] * one["harmless"] < 0 for fit in own for one in fit["first"][:4]]
    pairs = list(zip(scores, own, strict=True))
    return [
        f"{_mean(own, 'unexplained'):.3f}",
        f"{_mean(own, 'unused'):.3f}",
        f"{_mean(own, 'attributed'):.2f} of {_mean(own, 'whole'):.2f}",
        f"{fmean(s[0] / fit['attributed'] for s, fit in pairs):.2f}",
        f"{fmean(sum(s[:4]) / fit['attributed'] for s, fit in pairs):.2f}",
        f"{sum(both)} of {len(both)}",
    ]


def _cut(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    return [_figure(_mean(checks, name), 2) for name in ("refused", "garbled", "kl", "kept")]


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    known = [row[key] for row in rows if row[key] is not None]
    return fmean(known) if known else None


def _figure(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on what is wrong."""
    parser = argparse.ArgumentParser(description="Sparse latents that refuse.")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--layer", type=int, default=LAYER, metavar="N", help="block to read")
    parser.add_argument("--board", type=Path, default=Path("results/pocket-board"), metavar="DIR",
                        help="results folder with rows of `gcg`")  # fmt: skip
    parser.add_argument("--save", type=Path, metavar="DIR", help="keep the autoencoders there")
    parser.add_argument("--out", type=Path, default=Path("results/latents"), metavar="DIR")
    args = parser.parse_args(argv)
    try:
        found = [study(name, args.board, args.layer, args.save) for name in args.models]
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "latents.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (args.out / "README.md").write_text(as_markdown(found), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
