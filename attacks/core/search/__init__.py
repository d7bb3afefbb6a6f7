"""The search core that all prompt attacks share."""

from attacks.core.search.coordinate import CoordinateSearch, Found
from attacks.core.search.evaluate import Evaluator
from attacks.core.search.moves import Moves
from attacks.core.search.screening import ProbeSampling
from attacks.core.search.suffix import Pursuit, search_suffix

__all__ = [
    "CoordinateSearch",
    "Evaluator",
    "Found",
    "Moves",
    "ProbeSampling",
    "Pursuit",
    "search_suffix",
]
