"""Refusal predicted from the words of a prompt, before anything is generated.

After "I'm Afraid I Can't Do That: Predicting Prompt Refusal in Black-Box Generative Language
Models" (arXiv 2306.03423, section 4): TF-IDF of one to three words and logistic regression.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.core.reading.probes import fit_probe

Array: TypeAlias = NDArray[Any]
Features: TypeAlias = Callable[[Sequence[str]], Array]

_WORD = re.compile(r"[a-z0-9]+(?:['-][a-z0-9]+)*")


def ngrams(text: str, longest: int) -> list[str]:
    """The n-grams of one to `longest` words, lower case, in the order of the text."""
    words = _WORD.findall(text.lower())
    return [
        " ".join(words[at : at + n])
        for n in range(1, longest + 1)
        for at in range(len(words) - n + 1)
    ]


@dataclass(frozen=True)
class NGrams:
    """TF-IDF of n-grams: count times log((1 + N) / (1 + df)) + 1, rows of length 1."""

    longest: int
    weights: dict[str, float]
    """Inverse document frequencies of the n-grams that count, in the order of the columns."""

    @classmethod
    def fit(cls, texts: Sequence[str], *, longest: int = 3, least: int = 2) -> NGrams:
        """Of n-grams that stand in `least` of the texts or more."""
        found = Counter(gram for text in texts for gram in set(ngrams(text, longest)))
        weights = {
            gram: math.log((1 + len(texts)) / (1 + count)) + 1
            for gram, count in sorted(found.items())
            if count >= least
        }
        return cls(longest, weights)

    def __call__(self, texts: Sequence[str]) -> Array:
        """(N, K) float64; a text without any of the n-grams is a row of zeros."""
        places = {gram: at for at, gram in enumerate(self.weights)}
        rows = np.zeros((len(texts), len(places)))
        for row, text in zip(rows, texts, strict=True):
            for gram, count in Counter(ngrams(text, self.longest)).items():
                if gram in places:
                    row[places[gram]] = count * self.weights[gram]
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(np.divide(rows, norms, out=rows, where=norms > 0))


@dataclass(frozen=True)
class Predictor:
    """P(refused) from the words of a prompt."""

    features: Features
    weight: Array
    bias: float

    @classmethod
    def fit(cls, texts: Sequence[str], refused: Sequence[bool], features: Features) -> Predictor:
        """Logistic regression, its penalty by cross-validation; two of either outcome at least."""
        rows, marks = torch.from_numpy(features(texts)), torch.tensor(list(refused))
        rng = torch.Generator().manual_seed(0)
        # The probe's label 1 is what is answered.
        fitted = fit_probe(rows[marks], rows[~marks], rng=rng)
        return cls(features, -fitted.weight.double().numpy(), -float(fitted.bias))

    def __call__(self, texts: Sequence[str]) -> Array:
        """(N,) probabilities."""
        margins = self.features(texts) @ self.weight + self.bias
        return np.asarray(1 / (1 + np.exp(-np.clip(margins, -500, 500))))


def length(texts: Sequence[str]) -> Array:
    """(N, 1): the number of characters, which is the control."""
    return np.array([[float(len(one))] for one in texts])
