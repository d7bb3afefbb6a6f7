"""GCG as one would write it in thirty lines, to see what the search core is worth beside it.

It does what makes GCG fast without any machinery: keys and values of what precedes the slots are
computed once, logits where the target is predicted only, and the gradient at the embeddings. It
draws, filters and moves as `CoordinateSearch` with its defaults does, so both evaluate the same
candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from attacks.core.prompt import Prompt


def plain_loop(
    hf: Any,
    tokenizer: Any,
    prompt: Prompt,
    allowed: Tensor,
    *,
    width: int,
    topk: int,
    rng: Generator,
) -> Iterator[tuple[Tensor, float]]:
    """Search without end from the filling in `prompt`, whose slots stand together.

    Args:
        hf: a causal language model of transformers, on the CPU.
        tokenizer: its fast tokenizer.
        prompt: with a target.
        allowed: (V,) true for ids that a slot may hold.
        width: candidates drawn in each step.
        topk: tokens drawn from in each slot.
        rng: draws the candidates.

    Yields:
        The best candidate (S,) of each step, which it goes on from, and its loss.
    """
    first, last, target = int(prompt.slots[0]), int(prompt.slots[-1]) + 1, prompt.target_ids
    tail, embed = torch.cat([prompt.ids[last:], target[:-1]]), hf.get_input_embeddings()
    with torch.no_grad():
        cache = hf(prompt.ids[None, :first]).past_key_values

    def losses(embeds: Tensor) -> Tensor:
        rows = len(embeds)
        held = [[t.expand(rows, -1, -1, -1) for t in (o.keys, o.values)] for o in cache.layers]
        past = type(cache)(held)
        logits = hf(inputs_embeds=embeds, past_key_values=past, logits_to_keep=len(target)).logits
        wanted = target.expand(rows, -1)
        return cross_entropy(logits.transpose(1, 2), wanted, reduction="none").mean(1)

    filling = prompt.slot_ids
    while True:
        embeds = embed(torch.cat([filling, tail])[None]).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(losses(embeds)[0], embeds)
        score = -gradient[0, : len(filling)] @ embed.weight.T
        score[:, ~allowed] = -torch.inf
        score[torch.arange(len(filling)), filling] = -torch.inf
        choices = score.topk(topk).indices
        place = torch.rand((width, len(filling)), generator=rng).argsort(1)[:, :1]
        token = choices[place, torch.randint(topk, place.shape, generator=rng)]
        drawn = filling.repeat(width, 1).scatter_(1, place, token)
        texts = [
            prompt.pieces[0] + text + prompt.pieces[1] for text in tokenizer.batch_decode(drawn)
        ]
        read = tokenizer(texts, add_special_tokens=False)["input_ids"]
        kept = [ids == row for ids, row in zip(read, prompt.fill(drawn).tolist(), strict=True)]
        drawn = drawn[torch.tensor(kept)]
        with torch.no_grad():
            found = losses(embed(torch.cat([drawn, tail.expand(len(drawn), -1)], 1)))
        filling = drawn[found.argmin()]
        yield filling, float(found.min())
