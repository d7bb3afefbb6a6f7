"""What a plugin may import: every name here, and `benchmarks.judges` and `benchmarks.defenses`.

These names are stable. A name to be removed is announced in CHANGELOG.md and kept for one more
minor version, with a `DeprecationWarning`; whatever is imported from elsewhere may move without
notice.
"""

from attacks.attack import (
    Artefact,
    Attack,
    Behavior,
    ChangeAttack,
    Pursuit,
    State,
    Step,
    SuffixAttack,
    ThreatModel,
)
from attacks.core.errors import BadInput
from attacks.core.interventions import (
    AblateDirection,
    AblateSubspace,
    AddDirection,
    Context,
    Intervention,
    SuppressTokens,
)
from attacks.core.layout import Layout
from attacks.core.model import Model, ShieldedModel
from attacks.core.objectives import (
    AttentionLoss,
    Bound,
    Objective,
    ProbeLoss,
    RefusalProjection,
    SteeringLoss,
    TargetCrossEntropy,
    TargetLoss,
)
from attacks.core.prompt import Message, Messages, Prompt
from attacks.core.search import CoordinateSearch, RelaxedSearch, SoftSearch, search_suffix
from attacks.core.shields import BlackBox, Check, Shield
from attacks.core.sites import Site, Trace
from attacks.core.weights import Orthogonalise, WeightEdit

__all__ = [
    "AblateDirection",
    "AblateSubspace",
    "AddDirection",
    "Artefact",
    "Attack",
    "AttentionLoss",
    "BadInput",
    "Behavior",
    "BlackBox",
    "Bound",
    "ChangeAttack",
    "Check",
    "Context",
    "CoordinateSearch",
    "Intervention",
    "Layout",
    "Message",
    "Messages",
    "Model",
    "Objective",
    "Orthogonalise",
    "ProbeLoss",
    "Prompt",
    "Pursuit",
    "RefusalProjection",
    "RelaxedSearch",
    "Shield",
    "ShieldedModel",
    "Site",
    "SoftSearch",
    "State",
    "SteeringLoss",
    "Step",
    "SuffixAttack",
    "SuppressTokens",
    "TargetCrossEntropy",
    "TargetLoss",
    "ThreatModel",
    "Trace",
    "WeightEdit",
    "search_suffix",
]
