"""What a model itself answers once its refusal is ablated: the target of rerouting searches.

Such an answer is worth pursuing only if it is one. Where the ablation does not remove refusal, it
is a refusal, and a search towards it makes the model refuse; where it breaks the model, gibberish.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from torch import Generator, Tensor

from attacks.core.answer import Answer
from attacks.core.artefact import Artefact
from attacks.core.behavior import Behavior, names
from attacks.core.interventions import AblateDirection, AblateSubspace
from attacks.core.prompt import Messages
from attacks.core.reading.answers import answers
from attacks.core.refusals.branching import branched_answers
from attacks.core.refusals.checked_direction import Checked
from attacks.core.refusals.coherence import Coherence, garbled
from attacks.core.refusals.openers import (
    GENERAL_OPENERS,
    LATER_TOKENS,
    opens_with_refusal,
    refuses_on_the_way,
)
from attacks.core.refusals.remains import ends_alike, mangles, short_for_an_answer
from attacks.core.refusals.subspace import find_refusal_subspace
from attacks.core.refusals.verdicts import LEFT
from attacks.core.weights import Change

if TYPE_CHECKING:
    from attacks.core.model import Model

#: The tensors of an artefact that bring own answers.
OWN = ("subspace", "ablation")
#: Where a target may be from, in the order in which they are tried; the last is the behaviour's.
SUBSPACE, DIRECTION = "own answer, subspace", "own answer, direction"
BRANCHED, GIVEN = "own answer, decoded past its refusal", "given target"


@dataclass(frozen=True, eq=False)
class OwnAnswers:
    """The changes that may bring a model's own answer, and what tells an answer from none."""

    changes: tuple[tuple[str, Change], ...]
    """Source and change, in the order in which they are tried."""
    openers: tuple[str, ...] = GENERAL_OPENERS
    """Refusal openers, normalised."""
    coherence: Coherence | None = None
    """None: only texts themselves are looked at, for loops and echoes."""
    usual_words: float = 0.0
    """Of the median answer to a harmless prompt; 0 where that is not known."""

    @classmethod
    def of(
        cls, tensors: Mapping[str, Tensor], data: Mapping[str, Any], n_layers: int
    ) -> OwnAnswers:
        """From an artefact with `ablation` (D,), perhaps `subspace` (k, D), and `own` as data."""
        changes: list[tuple[str, Change]] = []
        if "subspace" in tensors:
            changes.append((SUBSPACE, AblateSubspace(tensors["subspace"], n_layers)))
        if "ablation" in tensors:
            changes.append((DIRECTION, AblateDirection(tensors["ablation"], n_layers)))
        own = data.get("own", {})
        coherence = Coherence(**own["coherence"]) if "coherence" in own else None
        openers = tuple(own.get("openers", GENERAL_OPENERS))
        return cls(tuple(changes), openers, coherence, float(own.get("usual_words", 0)))

    def target(self, model: Model, behavior: Behavior, *, tokens: int) -> tuple[str, str]:
        """What the answer is to begin with, and which of the sources it is from.

        The first of the model's own answers, of at most `tokens` tokens, that is neither a refusal,
        be it on the way or mangled, nor garbled, nor as short as a refusal. If that opens with the
        behaviour's target and is much what the plain model says, the target alone: there was no
        refusal to take away, and the model need not say again what it says anyway. Where that does
        not even name what is asked, it is the model's way out, and no answer. Where no change
        brings an answer, the plain model's is decoded anew, by up to `tokens` tokens, from where it
        refuses (`branched_answers`). The behaviour's target is the last resort: a model that opens
        its answers otherwise, or with small talk, finds it unlikely although it answers.
        """
        plain = self.plain(model, behavior.text)
        for source, change in self.changes:
            answer = own_answer(model, behavior.text, change, tokens)
            if self._passes(model, behavior.text, answer, plain):
                given = answer.startswith(behavior.affirmative)
                anyway = mangles(answer, behavior.text, plain)
                if given and anyway:
                    return behavior.affirmative, GIVEN
                if not (anyway and names(behavior, answer) is False):
                    return answer, source
        for _, answer in branched_answers(model, [behavior.text], self, tokens=tokens):
            return answer, BRANCHED
        return behavior.affirmative, GIVEN

    def opening(self, model: Model, behavior: Behavior, answer: str, *, tokens: int) -> str:
        """How `answer`, which a limit of tokens cut, begins; otherwise, all of it.

        Its first `tokens` tokens after what it has in common with the plain model's answer. Natural
        language is hardly ever brought about word for word as far as where it happens to be cut.
        """
        if not isinstance(answer, Answer) or answer.ended or model.chat.answer(answer) != answer:
            return answer  # Thoughts open alike, whatever they come to.
        plain = self.plain(model, behavior.text)
        same = takewhile(lambda pair: pair[0] == pair[1], zip(answer, plain, strict=False))
        shared = sum(1 for _ in same)
        ends = [end for _, end in model.chat.encode([answer])[0].offsets if end > shared]
        return answer[: ends[tokens - 1]] if len(ends) > tokens else answer

    def open_as_given(self, model: Model, behaviors: Sequence[Behavior], *, tokens: int) -> float:
        """Share of the behaviours whose `target` begins with the behaviour's own target."""
        found = [self.target(model, behavior, tokens=tokens)[0] for behavior in behaviors]
        begun = [own.startswith(b.affirmative) for own, b in zip(found, behaviors, strict=True)]
        return sum(begun) / max(1, len(begun))

    def answered(
        self, model: Model, behavior: Behavior, messages: Messages, *, tokens: int
    ) -> bool:
        """Whether the model answers `messages` with an answer to `behavior`, as far as `usable`.

        Asked where a given target is said: what follows may still be a refusal.
        """
        (said,) = model.generate([messages], max_new_tokens=tokens)
        return self.usable(model, behavior.text, said)

    def usable(self, model: Model, text: str, answer: str) -> bool:
        """Whether `answer` to `text` is worth pursuing; see `target`."""
        return self._passes(model, text, answer, self.plain(model, text))

    def _passes(self, model: Model, text: str, answer: str, plain: str) -> bool:
        said = model.chat.answer(answer)
        ended = not isinstance(answer, Answer) or answer.ended
        if not said.strip() or self.refuses(said, ended=ended):
            return False
        if self.refuses(plain) and mangles(said, text, plain):
            return False
        if ended and ends_alike(said, plain, self.openers, self.usual_words):
            return False
        return not garbled(model, self.coherence, [said], [text])[0]

    def refuses(self, said: str, *, ended: bool = True) -> bool:
        """Whether an answer refuses, or ends after as few words as a refusal."""
        if opens_with_refusal(said, self.openers) or refuses_on_the_way(said):
            return True
        return ended and short_for_an_answer(said, self.usual_words)

    def plain(self, model: Model, text: str) -> str:
        """What the model says to `text` as it is, long enough to see whether it refuses."""
        (said,) = answers(model, [text], tokens=LATER_TOKENS)
        return said


def own_answer(model: Model, text: str, change: Change, tokens: int) -> str:
    """How the model itself answers `text` with `change` in place, `tokens` at most."""
    (answer,) = model.generate(
        [model.conversation(text)], max_new_tokens=tokens, interventions=[change]
    )
    return answer


def fit_own_answers(
    model: Model, train: Sequence[Behavior], best: Checked, *, rng: Generator
) -> Artefact:
    """What `OwnAnswers.of` goes by, with the check of what comes first.

    The direction, if its check finds it good. Where the model refuses and the direction does not
    undo that, a subspace is fitted by gradient too.

    Args:
        model: the model.
        train: what the direction was found on.
        best: the direction.
        rng: for the fit.
    """
    tensors, check = {"ablation": best.found.direction}, best.check
    if not check.good and check.refused_before > LEFT:
        fitted = find_refusal_subspace(model, train, rng=rng)
        tensors["subspace"], check = fitted.basis, fitted.check
    examiner = best.examiner
    own: dict[str, Any] = {
        "openers": list(examiner.openers),
        "usual_words": examiner.usual_words,
    }
    if examiner.coherence is not None:
        own["coherence"] = examiner.coherence.data
    return Artefact(tensors, {"own": own}, check=check.data)
