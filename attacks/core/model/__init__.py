"""The model under attack: the only package that imports transformers and nnsight.

How a model is loaded, computes, is changed and answers; it knows no attack and no refusal.
"""

from attacks.core.model.cache import Prefix
from attacks.core.model.joint import Ask, JointModel, refusal_to_join
from attacks.core.model.meter import Work
from attacks.core.model.model import Model
from attacks.core.model.plain import PlainModel
from attacks.core.model.shielded import ShieldedModel, reworded
from attacks.core.model.wishes import Wish

__all__ = [
    "Ask",
    "JointModel",
    "Model",
    "PlainModel",
    "Prefix",
    "ShieldedModel",
    "Wish",
    "Work",
    "refusal_to_join",
    "reworded",
]
