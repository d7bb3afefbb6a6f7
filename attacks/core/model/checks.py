"""What a family can do, found out by doing it once on a few tokens.

There are more families than a list could hold, and a wrong site or a cache that is not read changes
figures without any sign. So the first use of each of these abilities tries it; a family that lacks
it is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from nnsight import NNsight
from torch import Tensor
from transformers import DynamicCache

from attacks.core.errors import BadInput
from attacks.core.model import tracing
from attacks.core.model.cache import Prefix
from attacks.core.model.chat import Chat
from attacks.core.model.families import Structure
from attacks.core.sites import Site

_TOKENS = 6

#: What models raise that are handed a cache of a kind they do not know.
_FOREIGN_CACHE = (AttributeError, IndexError, TypeError, ValueError)


class Checks:
    """Each check runs once for a model, the first two at once; none is metered."""

    def __init__(self, envoy: NNsight, structure: Structure, chat: Chat, n_layers: int) -> None:
        """Check the model in `envoy`, with tokens that `chat` allows.

        Raises as `embeddings` and `causal`.
        """
        self._envoy = envoy
        self._hf: Any = envoy._module
        self._structure = structure
        self._chat = chat
        self._n_layers = n_layers
        self._passed: set[str] = set()
        whole = self._logits(input_ids=self._ids)
        self.embeddings(whole)
        self.causal(whole)

    @cached_property
    def _ids(self) -> Tensor:
        """(1, T) some tokens."""
        ids = self._chat.allowed.nonzero()[:_TOKENS].T
        return ids.to(self._hf.get_input_embeddings().weight.device)

    @property
    def _embedded(self) -> Tensor:
        """(1, T, D) their embeddings."""
        embedded: Tensor = self._hf.get_input_embeddings()(self._ids)
        return embedded

    def _refuse(self, reason: str) -> BadInput:
        return BadInput(f"{self._structure.family}: {reason}")

    def same(self, one: Tensor, other: Tensor) -> bool:
        """Whether most rows of logits (T, V) agree as far as rounding lets them.

        Most, since a mixture's router may send a token elsewhere upon a rounding error.
        """
        centred = other - other.mean(-1, keepdim=True)
        # Where all tokens are as likely, there is next to nothing to divide by.
        errors = (one - other).norm(dim=-1) / centred.norm(dim=-1).clamp_min(0.1)
        exact = self._hf.dtype in (torch.float32, torch.float64)
        return bool(errors.median() < (1e-3 if exact else 0.1))

    @torch.no_grad()
    def _logits(self, **inputs: Tensor) -> Tensor:
        """(T, V) float32."""
        logits: Tensor = self._hf(**inputs, use_cache=False).logits[0].float()
        return logits

    def embeddings(self, whole: Tensor) -> None:
        """Make sure that the embeddings of tokens are to the model what the tokens are.

        Losses and activations are computed from embeddings, and answers from tokens, whose logits
        are `whole` (T, V).

        Raises:
            BadInput: this family reads more of a token than its embedding (Gemma 3n), or scales the
                embeddings of tokens only (Falcon-H1): the two would be of different models.
        """
        if not self.same(self._logits(inputs_embeds=self._embedded), whole):
            raise self._refuse(
                "given the embeddings of tokens it computes something else than given the tokens, "
                "so losses and activations would not be those behind its answers"
            )

    def causal(self, whole: Tensor) -> None:
        """Make sure that no position sees later ones; `whole` (T, V) are the logits of all tokens.

        Raises:
            BadInput: this is an encoder, or an embedding model made of a decoder: what it says of a
                target that it is shown would be nothing that it would say itself.
        """
        half = self._ids.shape[1] // 2
        if not self.same(self._logits(input_ids=self._ids[:, :half]), whole[:half]):
            raise self._refuse("its positions see later ones, so it is no causal language model")

    def writes(self, places: Iterable[Site]) -> None:
        """`residual_writes`, where `attn_out` or `mlp_out` is among the `places`."""
        if any(place.name in ("attn_out", "mlp_out") for place in places):
            self.residual_writes()

    @torch.no_grad()
    def residual_writes(self) -> None:
        """Make sure that `attn_out` and `mlp_out` are all that each block adds to the stream.

        Raises:
            BadInput: this family adds something else, so these sites would be wrong.
        """
        if "residual writes" in self._passed:
            return
        names = ("resid_pre", "attn_out", "mlp_out", "resid_post")
        positions = tuple(range(self._ids.shape[1]))
        blocks = [
            [Site(layer, name, positions) for name in names] for layer in range(self._n_layers)
        ]
        every = [site for reads in blocks for site in reads]
        plan = tracing.plan(every, (), past=0, n_layers=self._n_layers)
        work = tracing.Pass(self._embedded)
        trace = tracing.run(self._envoy, self._structure, work, plan)
        for layer, reads in enumerate(blocks):
            before, attn, mlp, after = (trace[site].float() for site in reads)
            for site in reads[1:3]:
                if trace[site].shape != before.shape:
                    raise self._refuse(
                        f"what its block {layer} computes for site '{site.name}' does not have the "
                        "shape of the residual stream, so this site cannot be used"
                    )
            error = (before + attn + mlp - after).norm() / after.norm()
            if not error < 0.02:
                raise self._refuse(
                    f"the output of its block {layer} is not its input plus its attention and MLP "
                    f"outputs (relative error {error:.2g}), so these sites cannot be used"
                )
        self._passed.add("residual writes")

    def gradients(self) -> None:
        """Make sure that gradients at the embeddings say how logits change.

        Kernels of quantised weights need not pass any back: what arrives has then gone around the
        weights only, along the residual stream. Others are torch's own, and are not tried.

        Raises:
            BadInput: this format passes none back, or wrong ones.
        """
        quantised = getattr(self._hf.config, "quantization_config", None) is not None
        if not quantised or "gradients" in self._passed:
            return
        at = self._embedded.detach()

        def highest(embeds: Tensor) -> Tensor:
            logits: Tensor = self._hf(inputs_embeds=embeds, use_cache=False).logits[0, -1].float()
            return (logits - logits.mean())[token]

        with torch.no_grad():
            token = int(self._hf(inputs_embeds=at, use_cache=False).logits[0, -1].argmax())
        told = found = 0.0
        with torch.enable_grad():
            embeds = at.requires_grad_()
            score = highest(embeds)
            (gradient,) = torch.autograd.grad(score, embeds) if score.requires_grad else (None,)
        if gradient is not None and gradient.any():
            # A hundredth of the embeddings' length is small enough to be nearly linear, and large
            # enough for weights and activations of 8 bits to show it.
            way = 0.01 * at.norm() * gradient / gradient.norm()
            told = float((gradient * way).sum())
            with torch.no_grad():
                found = float(highest(at + way) - highest(at - way)) / 2
        if not 0 < told / 3 < found < told * 3:
            raise self._refuse(
                "its quantised weights pass no right gradients back (along the gradient the "
                f"highest logit changes by {found:.2g} where {told:.2g} is told), so attacks that "
                "need gradients cannot be run on it"
            )
        self._passed.add("gradients")

    @torch.no_grad()
    def prefix(self) -> None:
        """Make sure that a cached beginning changes nothing.

        Raises:
            BadInput: this family does not keep keys and values, or not only these.
        """
        if "prefix" in self._passed:
            return
        start = self._ids.shape[1] // 2
        cache = DynamicCache()
        try:
            self._hf(input_ids=self._ids[:, :start], past_key_values=cache, use_cache=True)
            shared = Prefix.of(cache)
            if len(shared.layers) != self._n_layers or shared.length != start:
                raise ValueError("positions or layers are missing")
            rest = self._ids[:, start:]
            cache = shared.expanded(1, kept=False)
            cached = self._hf(input_ids=rest, past_key_values=cache, use_cache=True).logits[0]
        except _FOREIGN_CACHE as error:
            raise self._refuse(
                "not every block keeps keys and values of every position, so no prefix can be "
                "cached"
            ) from error
        full = self._hf(input_ids=self._ids, use_cache=False).logits[0, start:]
        if not self.same(cached.float(), full.float()):
            raise self._refuse("later positions need more than the keys and values of a prefix")
        self._passed.add("prefix")

    @torch.no_grad()
    def padding(self) -> None:
        """Make sure that an answer does not depend on the padding before its prompt.

        Raises:
            BadInput: this family reads it.
        """
        if "padding" in self._passed:
            return
        mask = torch.ones_like(self._ids)
        padded = torch.cat([self._ids.flip(1), self._ids], 1)
        rows = [(self._ids, mask), (padded, torch.cat([0 * mask, mask], 1))]
        alone, beside = (
            self._hf.generate(
                input_ids=ids,
                attention_mask=seen,
                max_new_tokens=1,
                output_logits=True,
                return_dict_in_generate=True,
            ).logits[0]
            for ids, seen in rows
        )
        if not self.same(beside.float(), alone.float()):
            raise self._refuse(
                "an answer depends on the padding before its prompt; only prompts of one length "
                "can share a batch"
            )
        self._passed.add("padding")
