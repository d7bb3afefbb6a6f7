"""What is studied: a model with control tokens, prompts, and their answers after each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Generator, Tensor

from attacks.attack import Behavior
from attacks.control_tokens import ControlTokenSteering
from attacks.core.errors import BadInput
from attacks.core.interventions import Context
from attacks.core.model import Model
from attacks.core.reading.states import last_token
from attacks.core.refusals.control import ControlTokens, FirstToken, Force, find_control_tokens
from attacks.core.refusals.openers import learn_openers
from attacks.core.sites import Site
from attacks.core.template import DATE
from benchmarks.harness.plan import refuse_overlap
from benchmarks.inputs.behaviors import chosen_sets, load_behaviors
from benchmarks.inputs.loading import load_model
from benchmarks.inputs.models import resolve
from benchmarks.judges import Judge, Verdict, default_judge, load_judge

_TRAIN, _TEST = "pocket-categories-train", "pocket-categories-test"
_LOGITS = Site(-1, "logits")
_NEW_TOKENS = 64
_SEED = 0


@dataclass(frozen=True)
class Options:
    """What to study, and how."""

    model: str
    train: str | None = None
    behaviors: str | None = None
    out: Path | None = None
    limit: int | None = None
    """Harmful, and harmless, prompts of each set."""
    temperature: float = 1.0
    """Of the probabilities that thresholds are compared with."""
    suffix: int = 0
    """Random tokens put after each request, which make the model less sure."""
    device: str = "auto"
    dtype: str = "auto"
    system: str | None = None
    date: str = DATE
    device_map: str | None = None


class Asked:
    """Prompts, the logits of their first tokens, and the verdicts on their answers.

    The logits are read once. An answer is generated once for each prompt and first token, when it
    is asked for: greedy, it is the same however that token came to be chosen. So a threshold, a
    bias or a forced token only decides which of these answers counts.
    """

    def __init__(
        self,
        model: Model,
        tokens: ControlTokens,
        behaviors: Sequence[Behavior],
        *,
        judge: Judge,
        openers: Sequence[str],
        temperature: float,
    ) -> None:
        """Read the first token's logits of all `behaviors`."""
        self.model = model
        self.tokens = tokens
        self.behaviors = list(behaviors)
        self.temperature = temperature
        self._judge = judge
        self._openers = openers
        self.logits = last_token(model, [row.text for row in behaviors], [_LOGITS])[_LOGITS]
        self._verdicts: dict[tuple[int, int], Verdict] = {}

    @cached_property
    def probs(self) -> Tensor:
        """(N, 1 + K) of the token for answers and those for refusals, in double precision."""
        ids = [self.tokens.respond, *self.tokens.refuse]
        return (self.logits.double() / self.temperature).softmax(1)[:, ids]

    @property
    def own(self) -> Tensor:
        """(N,) ids of the first tokens that the model chooses itself."""
        return self.logits.argmax(1)

    def under(self, attack: ControlTokenSteering) -> Tensor:
        """(N,) ids of the first tokens that it answers with under an attack."""
        ctx = Context(_LOGITS, 0, None, None)
        changed = attack.intervention(self.tokens)(self.logits.unsqueeze(1), ctx)
        return changed[:, -1].argmax(1)

    def verdicts(self, members: Sequence[int], first: Sequence[int]) -> list[Verdict]:
        """What the judge says of the texts of some prompts, each after its first token."""
        wanted = list(zip(members, first, strict=True))
        missing: dict[int, list[int]] = {}
        for index, token in wanted:
            if (index, token) not in self._verdicts:
                missing.setdefault(token, []).append(index)
        for token, group in missing.items():
            for index, text in zip(group, self._answers(group, token), strict=True):
                row = self.behaviors[index]
                said = self._judge.judge(row, text, openers=self._openers)
                self._verdicts[index, token] = said
        return [self._verdicts[key] for key in wanted]

    def _answers(self, members: Sequence[int], token: int) -> list[str]:
        """Texts as a user would see them: control tokens are special and not shown."""
        return self.model.generate(
            [self.model.conversation(self.behaviors[index].text) for index in members],
            max_new_tokens=_NEW_TOKENS,
            interventions=(FirstToken(Force((token,))),),
            batch_size=64,
        )


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with its control tokens, and both sets of prompts."""

    model: Model
    tokens: ControlTokens
    judge: str
    train_name: str
    test_name: str
    train: Asked
    test: Asked

    @property
    def categories(self) -> list[str]:
        """Those with a control token of their own and harmful prompts in both sets."""
        train, test = (
            {row.category for row in asked.behaviors if row.harmful}
            for asked in (self.train, self.test)
        )
        return [name for name in self.tokens.names if name in train & test]


def load_subject(options: Options) -> Subject:
    """Load the sets and the model, and read the first token's logits of every prompt.

    Raises:
        BadInput: a set that is missing, unknown, empty on one side or overlaps the other; a model
            that cannot be loaded or has no control tokens.
    """
    train_name, test_name = chosen_sets(
        "tokens", options.model, (options.train, options.behaviors), (_TRAIN, _TEST)
    )
    if not options.temperature > 0:
        raise BadInput(f"tokens: temperature {options.temperature:g} must be positive")
    if options.suffix < 0:
        raise BadInput(f"tokens: suffix {options.suffix} must not be negative")
    sets = [_load(name, options.limit) for name in (train_name, test_name)]
    refuse_overlap(sets[0], sets[1], train_name, test_name)
    model = load_model(resolve(options.model), options.model, options)
    tokens = find_control_tokens(model)
    judge = default_judge([*sets[0], *sets[1]])
    openers = learn_openers(model, sets[0])
    sets = [_suffixed(model, rows, options.suffix) for rows in sets]
    train, test = (
        Asked(
            model,
            tokens,
            rows,
            judge=load_judge(judge),
            openers=openers,
            temperature=options.temperature,
        )
        for rows in sets
    )
    return Subject(model, tokens, judge, train_name, test_name, train, test)


def _load(name: str, limit: int | None) -> list[Behavior]:
    rows = load_behaviors(name)
    if limit is not None and limit < 1:
        raise BadInput(f"tokens: limit {limit} is too small; at least 1")
    kinds = [[row for row in rows if row.harmful == flag][:limit] for flag in (True, False)]
    if not all(kinds):
        raise BadInput(f"tokens: '{name}' must hold harmful and harmless behaviours")
    return kinds[0] + kinds[1]


def _suffixed(model: Model, rows: Sequence[Behavior], length: int) -> list[Behavior]:
    """The behaviours with `length` uniformly drawn tokens after each text."""
    allowed = model.chat.allowed.nonzero().squeeze(1)
    rng = Generator().manual_seed(_SEED)
    drawn = allowed[torch.randint(len(allowed), (len(rows), length), generator=rng)]
    endings = model.chat.decode(drawn.tolist())
    return [replace(row, text=row.text + end) for row, end in zip(rows, endings, strict=True)]
