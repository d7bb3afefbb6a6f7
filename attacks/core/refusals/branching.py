"""Answers to what a model refuses, in its own words: decoded anew from where the refusal begins.

A target such as "Sure, here is how to" shows a fit what complying looks like. A model that opens
its answers otherwise finds it unlikely after harmless requests too, and one that refuses in its
second sentence does not decide there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from attacks.core.errors import BadInput
from attacks.core.prompt import Message
from attacks.core.reading.answers import answers
from attacks.core.reading.states import last_of
from attacks.core.refusals.coherence import Coherence, garbled, mean_log_probs
from attacks.core.refusals.openers import refusal_start
from attacks.core.refusals.remains import ends_alike, mangles, short_for_an_answer
from attacks.core.sites import Site

if TYPE_CHECKING:
    from attacks.core.model import Model

#: Requests that are answered so at most, and next tokens that are tried for each.
_REQUESTS, _TOKENS = 48, 6
_ROWS = 16


class Standards(Protocol):
    """What tells an answer from none: an `Examiner`, or `OwnAnswers`."""

    @property
    def openers(self) -> tuple[str, ...]:
        """Of refusals, normalised."""

    @property
    def coherence(self) -> Coherence | None:
        """See `garbled`."""

    @property
    def usual_words(self) -> float:
        """Of the median answer to a harmless prompt; 0 where that is not known."""

    def refuses(self, answer: str, /) -> bool:
        """Whether an answer refuses."""


def branched_answers(
    model: Model, texts: Sequence[str], standards: Standards, *, tokens: int
) -> list[tuple[str, str]]:
    """Requests among the first `_REQUESTS` of `texts` that are refused, with answers to them.

    Each is decoded for up to `tokens` tokens, before and from where it refuses.

    The model's own answer is kept up to where it turns into a refusal, the likeliest tokens there
    are put in turn, and greedy decoding goes on from each (arXiv 2312.04782 forces lower-ranked
    tokens in this way). Of what comes out as neither garbled nor a refusal, nor as short as the
    remains of one, the one taken has the highest mean log-probability. Requests for which nothing
    does are left out, and so are all where the chat template does not let an answer be continued.
    """
    texts = texts[:_REQUESTS]
    said = answers(model, texts, tokens=tokens)
    refusals = {
        text: answer for text, answer in zip(texts, said, strict=True) if standards.refuses(answer)
    }
    kept: dict[str, tuple[Tensor, list[int]]] = {}
    for text, answer in refusals.items():
        with suppress(BadInput):
            kept[text] = before_refusal(model, text, answer, standards.openers)
    if not kept:
        return []
    site = Site(-1, "logits")
    logits = last_of(model, [ids for ids, _ in kept.values()], [site])[site]
    branches: list[tuple[str, str]] = []
    for (text, (_, before)), row in zip(kept.items(), logits, strict=True):
        begun = _decoded(model, before)
        opened = [_decoded(model, [*before, token]) for token in row.topk(_TOKENS).indices.tolist()]
        branches += [(text, to) for to in opened if to != begun]
    asked = [(*model.conversation(text), Message("assistant", to)) for text, to in branches]
    found: dict[str, tuple[float, str]] = {}
    with suppress(BadInput):
        rest = model.generate(
            asked, max_new_tokens=tokens, pad_to=32, batch_size=min(_ROWS, len(asked))
        )
        requests = [text for text, _ in branches]
        # What is generated comes stripped: whether a space begins it is what the model would say.
        ways = [
            [
                (opened + gap + more).rstrip()
                for (_, opened), more in zip(branches, rest, strict=True)
            ]
            for gap in ("", " ")
        ]
        scored = [zip(mean_log_probs(model, way, requests), way, strict=True) for way in ways]
        likelier = list(map(max, *scored))
        marks = garbled(model, standards.coherence, [answer for _, answer in likelier], requests)
        for text, (score, answer), bad in zip(requests, likelier, marks, strict=True):
            remains = (
                short_for_an_answer(answer, standards.usual_words)
                or mangles(answer, text, refusals[text])
                or ends_alike(answer, refusals[text], standards.openers, standards.usual_words)
            )
            better = text not in found or score > found[text][0]
            if better and not (bad or remains or standards.refuses(answer)):
                found[text] = (score, answer)
    return [(text, answer) for text, (_, answer) in found.items()]


def before_refusal(
    model: Model, text: str, refusal: str, openers: Sequence[str]
) -> tuple[Tensor, list[int]]:
    """(T,) ids of a request with its answer up to where it refuses, and those of that answer.

    White space before the refusal counts as before it: where it is a token of its own (a new line,
    say), the model decides after it. So what is kept are the answer's own tokens, as long as they
    hold nothing else beyond what comes before the refusal.

    Raises:
        BadInput: the answer does not fit behind the request, as `Model.plain`.
    """
    before = refusal[: refusal_start(refusal, openers) or 0].rstrip()
    prompt = model.plain(text, target=refusal or None)
    said = prompt.target_ids.tolist()
    begun = model.chat.decode([said[:count] for count in range(len(said) + 1)])
    count = max(at for at, part in enumerate(begun) if len(part.strip()) <= len(before))
    return torch.cat([prompt.ids, prompt.target_ids[:count]]), said[:count]


def _decoded(model: Model, ids: Sequence[int]) -> str:
    return model.chat.decode([list(ids)])[0].strip()
