"""The search core that attacks share: over tokens, and over embeddings.

Loops only: losses are in `objectives`, and no attack is known here.
"""

from attacks.core.search.continuous import SoftSearch
from attacks.core.search.coordinate import CoordinateSearch, Found
from attacks.core.search.evaluate import Evaluator
from attacks.core.search.moves import Moves
from attacks.core.search.relaxed import RelaxedSearch
from attacks.core.search.screening import ProbeSampling
from attacks.core.search.suffix import Pursuit, search_suffix

__all__ = [
    "CoordinateSearch",
    "Evaluator",
    "Found",
    "Moves",
    "ProbeSampling",
    "Pursuit",
    "RelaxedSearch",
    "SoftSearch",
    "search_suffix",
]
