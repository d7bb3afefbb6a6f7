"""The model under attack: the only package that imports transformers and nnsight."""

from attacks.core.model.cache import Prefix
from attacks.core.model.meter import Work
from attacks.core.model.model import Model
from attacks.core.model.plain import PlainModel

__all__ = ["Model", "PlainModel", "Prefix", "Work"]
