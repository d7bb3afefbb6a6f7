"""Answers to what a model refuses, in its own words: decoded anew from where the refusal begins.

A target such as "Sure, here is how to" shows a fit what complying looks like. A model that opens
its answers otherwise finds it unlikely after harmless requests too, and one that refuses in its
second sentence does not decide there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from attacks.core.errors import BadInput
from attacks.core.prompt import Message
from attacks.core.reading.answers import answers
from attacks.core.reading.states import last_of
from attacks.core.refusals.coherence import mean_log_probs
from attacks.core.refusals.openers import refusal_start
from attacks.core.refusals.verdicts import Examiner
from attacks.core.sites import Site

if TYPE_CHECKING:
    from attacks.core.model import Model

#: Requests that are answered so at most, and next tokens that are tried for each.
_REQUESTS, _TOKENS = 48, 6
_ROWS = 16
#: Of the words of a usual answer; what is as short may be the remains of a refusal.
_SHORT = 0.5


def branched_answers(
    model: Model, texts: Sequence[str], examiner: Examiner
) -> list[tuple[str, str]]:
    """Requests among the first `_REQUESTS` of `texts` that are refused, with answers to them.

    The model's own answer is kept up to where it turns into a refusal, the likeliest tokens there
    are put in turn, and greedy decoding goes on from each (arXiv 2312.04782 forces lower-ranked
    tokens in this way). Of what comes out as neither garbled nor a refusal, nor as short as the
    remains of one, the one taken has the highest mean log-probability. Requests for which nothing
    does are left out, and so are all where the chat template does not let an answer be continued.
    """
    texts = texts[:_REQUESTS]
    said = answers(model, texts, tokens=examiner.tokens)
    kept = [
        (text, answer[: refusal_start(answer, examiner.openers) or 0].rstrip())
        for text, answer in zip(texts, said, strict=True)
        if examiner.refuses(answer)
    ]
    if not kept:
        return []
    prompts = [model.plain(text, target=before or None) for text, before in kept]
    site = Site(-1, "logits")
    logits = last_of(model, [prompt.sequence for prompt in prompts], [site])[site]
    branches = [
        (text, before, opened)
        for (text, before), prompt, row in zip(kept, prompts, logits, strict=True)
        for token in row.topk(_TOKENS).indices.tolist()
        if (opened := _decoded(model, [*prompt.target_ids.tolist(), token])) != before
    ]
    asked = [(*model.conversation(text), Message("assistant", to)) for text, _, to in branches]
    found: dict[str, tuple[float, str]] = {}
    with suppress(BadInput):
        rest = model.generate(
            asked, max_new_tokens=examiner.tokens, pad_to=32, batch_size=min(_ROWS, len(asked))
        )
        answered = [opened + more for (_, _, opened), more in zip(branches, rest, strict=True)]
        requests = [text for text, _, _ in branches]
        spoiled = examiner.spoiled(requests, answered)
        scores = mean_log_probs(model, answered, requests)
        for text, answer, bad, score in zip(requests, answered, spoiled, scores, strict=True):
            short = len(answer.split()) <= _SHORT * examiner.usual_words
            if (
                not (bad or short or examiner.declines(text, answer))
                and score > found.get(text, (float("-inf"), ""))[0]
            ):
                found[text] = (score, answer)
    return [(text, answer) for text, (_, answer) in found.items()]


def _decoded(model: Model, ids: Sequence[int]) -> str:
    return model.chat.decode([list(ids)])[0].strip()
