"""Harden the village model against suffixes and ablation: ``python data/village/hard.py``.

A second round after ``train.py``: its adapter goes on learning, on the same requests, under attack.

- Ablation. In three steps of four the whole batch, harmless requests too, loses directions: either
  differences in means of any layer and template token, refitted all along, or the first 1, 2 or 4
  rows of subspaces that are fitted by gradient while the model learns. The same backward pass
  serves both players (arXiv 1904.12843): the adapter lowers the loss, and the subspaces raise it
  on harmful requests and lower it on harmless ones, as ``refusal-subspace`` would have it.
- Strings. Half of the harmful requests carry ten tokens, around or after them. A pool of strings
  stays with its requests and is improved whenever they come (the persistent test cases of
  arXiv 2402.04249); here one exchange by gradient a visit, which is undone where it was none for
  the better. Harmless requests carry strings as well, lest odd strings come to mean a refusal.

Answers to learn are those of ``train.py``: refusals, and for harmless requests the base's own.

Its model is `village-smollm2-hard`. What was learned on the way: without a bound (`LOST`),
subspaces of four rows break the model (losses of 22 nats a token for refusals, 8 for harmless
answers) in place of taking its refusals away; and with one everyday request a step (100 steps) a
quarter of the everyday requests tried was refused. A step takes 8 to 10 s of one core without
AVX-512.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

HERE = Path(__file__).resolve().parent
# This folder first: the pocket models have a `train` too.
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parent / "pocket")]

from attacks.core.model import Model
from attacks.core.refusals.choice import DEPTH
from attacks.core.refusals.directions import difference_in_means
from attacks.core.refusals.fit_subspace import RATE as FIT_RATE
from attacks.core.refusals.fit_subspace import orthonormal
from opponents import FRONTS, SLOTS, Attacked, Chat, Row, ablated, placed, usual_tokens
from prompts import everyday, some
from train import Example, begin, harmful_and_near, own_answers, save, shuffled_for_ever
from train import example as conversation
from training import descend

logger = logging.getLogger(__name__)

SEED = 1
START, NAME = "village-smollm2", "village-smollm2-hard"
RATE = 4e-4
STEPS = 120
#: Requests of each kind in a step: harmful ones as they are and with strings, harmless ones.
PLAIN, ATTACKED, EVERYDAY, NEAR = 3, 4, 3, 4
#: Harmless requests about grave matters whose answers are learned; of everyday ones, half as many.
HARMLESS = 120
#: Share of the harmless requests that carry a string.
ODD = 0.5
#: Shares of the steps with a subspace fitted by gradient and with a difference in means ablated.
SUBSPACE, MEANS = 0.55, 0.2
#: Loss of the refusals, in nats a token, from which a subspace only learns to spare harmless
#: answers: without a bound, what raises it most breaks the model.
LOST = 2.0
#: Subspaces, and how many of their rows are ablated.
POOL, ROWS = 2, (1, 2, 4)
#: Steps after which differences in means are fitted anew, and requests of a kind for them.
REFIT, FITTED = 25, 16
#: Harmful requests that keep a string, and the best tokens of which one is drawn.
KEPT, BEST = 40, 8
#: Chance of each token of a string to be exchanged.
EXCHANGED = 0.3


def main() -> None:
    """Harden, and save the adapter in half precision."""
    options, base = begin(__doc__, NAME, steps=STEPS, seed=SEED)
    harmful, spoken_of = harmful_and_near()
    requests = {
        "everyday": some(everyday(held_out=False), HARMLESS // 2, SEED),
        "near": some(spoken_of, HARMLESS, SEED),
    }
    answered = {kind: own_answers(base, texts) for kind, texts in requests.items()}
    logger.info("answers of the base are there")
    refused = [conversation(base, text, pick) for text, pick in harmful]
    tuned = PeftModel.from_pretrained(base.hf, str(HERE / "models" / START), is_trainable=True)
    texts = [text for text, _ in harmful], [*requests["everyday"], *requests["near"]]
    game = Game(tuned, base, refused, answered, texts)
    descend(tuned, game.losses(), steps=options.steps, lr=RATE, weight_decay=0.0)
    save(tuned, options.out)


class Game:
    """Batches, what attacks them, and the losses for the adapter to lower."""

    def __init__(
        self,
        tuned: Any,
        base: Model,
        refused: list[Example],
        answered: dict[str, list[Example]],
        texts: tuple[list[str], list[str]],
    ) -> None:
        self.tuned, self.chat, self.texts = tuned, Chat(base), texts
        # The adapter is in the base's own modules: this is the model as it learns.
        self.target = base
        self.core = tuned.get_base_model()
        self.draw = random.Random(SEED)
        self.rng = torch.Generator().manual_seed(SEED)
        self.words = usual_tokens(base.chat.tokenizer)
        rows = [self.chat.row(example) for example in refused]
        kept = self.draw.sample(rows, KEPT)
        strings = [self.string() for _ in kept]
        self.attacked = [
            Attacked(row, string, string, front=FRONTS[at % 2])
            for at, (row, string) in enumerate(zip(kept, strings, strict=True))
        ]
        self.streams = [
            (shuffled_for_ever(rows, self.draw), PLAIN),
            (
                shuffled_for_ever([self.chat.row(e) for e in answered["everyday"]], self.draw),
                EVERYDAY,
            ),
            (shuffled_for_ever([self.chat.row(e) for e in answered["near"]], self.draw), NEAR),
        ]
        self.visits = shuffled_for_ever(self.attacked, self.draw)
        self.means = self.fitted_means()
        starts = [normalize(self.mean(ROWS[-1]), dim=1) for _ in range(POOL)]
        self.raw = [start.clone().requires_grad_() for start in starts]
        self.fits = [torch.optim.Adam([raw], lr=FIT_RATE) for raw in self.raw]

    def losses(self) -> Iterator[Tensor]:
        """The loss of each step; between the steps the attackers make theirs."""
        step = 0
        while True:
            step += 1
            if step % REFIT == 0:
                self.means = self.fitted_means()
            visited = [next(self.visits) for _ in range(ATTACKED)]
            plain, *harmless = (
                [next(stream) for _ in range(count)] for stream, count in self.streams
            )
            rows = [placed(each.row, each.tried, each.front) for each in visited] + plain
            rows += [self.odd(row) for kind in harmless for row in kind]
            chance, number, basis = self.draw.random(), None, None
            if chance < SUBSPACE:
                number = self.draw.randrange(POOL)
                basis = orthonormal(self.raw[number][: self.draw.choice(ROWS)])
            elif chance < SUBSPACE + MEANS:
                basis = normalize(self.mean(1), dim=1)
            with ablated(self.core, basis, ATTACKED + PLAIN) as weight:
                losses, embedded = self.row_losses(rows)
                if losses[: ATTACKED + PLAIN].mean() > LOST:
                    weight.zero_()
            yield losses.mean()
            if number is not None:
                self.fits[number].step()
                self.fits[number].zero_grad()
            assert embedded.grad is not None
            for at, each in enumerate(visited):
                self.improve(each, losses[at].item(), embedded.grad[at])
            if step % 5 == 0:
                kinds = losses.detach().split([ATTACKED, PLAIN, EVERYDAY + NEAR])
                how = "plain" if basis is None else "means" if number is None else f"{len(basis)}"
                logger.info("step %d %s: %s", step, how, [round(float(x.mean()), 3) for x in kinds])

    def row_losses(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """(B,) mean cross-entropy of each answer, and the embeddings (B, T, D) with a gradient.

        The head of the template is read once for all rows, and no gradient flows through it.
        """
        ids = [torch.tensor(self.chat.ids(row)) for row in rows]
        padded = pad_sequence(ids, batch_first=True)
        head = torch.tensor([self.chat.head])
        mask = torch.zeros(len(rows), head.shape[1] + padded.shape[1], dtype=torch.long)
        for at, row in enumerate(ids):
            mask[at, : head.shape[1] + len(row)] = 1
        with torch.no_grad():
            cache = DynamicCache()
            self.core.model(input_ids=head, past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(rows))
            embedded = self.core.model.embed_tokens(padded)
        embedded.requires_grad_()
        states = self.core.model(
            inputs_embeds=embedded, attention_mask=mask, past_key_values=cache, use_cache=True
        ).last_hidden_state
        spans = [(len(row) - len(r.answer), len(row)) for row, r in zip(ids, rows, strict=True)]
        said = torch.cat([states[at, a - 1 : b - 1] for at, (a, b) in enumerate(spans)])
        wanted = torch.cat([padded[at, a:b] for at, (a, b) in enumerate(spans)])
        each = cross_entropy(self.core.lm_head(said), wanted, reduction="none")
        parts = each.split([b - a for a, b in spans])
        return torch.stack([part.mean() for part in parts]), embedded

    def improve(self, each: Attacked, loss: float, gradient: Tensor) -> None:
        """Keep the string that was tried where it did better, and exchange some of its tokens."""
        if loss >= each.loss:
            back = each.front + len(each.row.request)
            slots = [*range(each.front), *range(back, back + SLOTS - each.front)]
            table = self.core.model.embed_tokens.weight.detach()[self.words]
            gains = gradient[slots] @ table.T
            each.choices = self.words[gains.topk(BEST, dim=1).indices]
            each.best = each.tried
        # The best string gets easier to withstand as the model learns, and must not stand for ever.
        each.loss = 0.9 * max(loss, each.loss)
        assert each.choices is not None
        drawn = torch.randint(BEST, (SLOTS, 1), generator=self.rng)
        new = each.choices.gather(1, drawn).squeeze(1)
        exchanged = torch.rand(SLOTS, generator=self.rng) < EXCHANGED
        each.tried = torch.where(exchanged, new, each.best)

    def odd(self, row: Row) -> Row:
        """A harmless request, perhaps with a string of the pool or a random one."""
        if self.draw.random() >= ODD:
            return row
        pool = [each.best for each in self.attacked]
        string = self.draw.choice(pool) if self.draw.random() < 0.5 else self.string()
        return placed(row, string, self.draw.choice(FRONTS))

    def string(self) -> Tensor:
        """(SLOTS,) random tokens."""
        return self.words[torch.randint(len(self.words), (SLOTS,), generator=self.rng)]

    def fitted_means(self) -> Tensor:
        """(P, L, D) differences in means of the model as it is, at the tokens after a request."""
        some_of = [self.draw.sample(kind, FITTED) for kind in self.texts]
        last = len(self.chat.tail)
        with torch.no_grad():
            self.tuned.eval()
            found = difference_in_means(
                self.target, *some_of, locate=lambda prompt: range(len(prompt.ids))[-last:]
            )
            self.tuned.train()
        return found

    def mean(self, count: int) -> Tensor:
        """(count, D) differences in means of layers drawn by chance, most at the last token.

        The attack takes none of the last layers; those of the first hardly tell requests apart.
        """
        depth = self.means.shape[1]
        layers = range(depth // 5, int(DEPTH * depth))
        places = [
            -1 if self.draw.random() < 0.6 else self.draw.randrange(len(self.means))
            for _ in range(count)
        ]
        return torch.stack([self.means[at, self.draw.choice(layers)] for at in places])


if __name__ == "__main__":
    main()
