"""What prompts begin with in common is computed once, and changes nothing but rounding."""

from __future__ import annotations

import pytest
import torch

from attacks.core.errors import BadInput
from attacks.core.interventions import AblateDirection, AddDirection
from attacks.core.model import Model
from attacks.core.reading.states import last_token, next_token_log_probs, read
from attacks.core.sites import Site
from attacks.core.weights import Change
from conftest import normal, tiny

#: Long enough to be shared; the requests differ in length and begin alike.
BEGINNING = "the lamp and the harp and the rope and the bell and the drum and the coin of"
TEXTS = [f"{BEGINNING} {end}" for end in ("gold", "a very old iron chest", "tin and lead", "wood")]
SITES = [
    *(Site(0, "resid_pre"), Site(1, "z"), Site(1, "attn_out"), Site(1, "mlp_post")),
    *(Site(2, "resid_post"), Site(-1, "logits")),
]


def changes(model: Model) -> list[Change]:
    return [
        AblateDirection(normal(model.width), model.n_layers),
        AddDirection(normal(model.width, seed=1), 1, 1.0),
    ]


def passed(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of each pass's sequences, as they are run."""
    seen: list[int] = []
    count = model.meter.count
    monkeypatch.setattr(
        model.meter, "count", lambda **told: (seen.append(told["new"]), count(**told))
    )
    return seen


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2"])
@pytest.mark.parametrize("changed", [False, True], ids=["plain", "changed"])
def test_sharing_changes_nothing_but_rounding(
    family: str, changed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(family)
    made = changes(model) if changed else []
    alone = last_token(model, TEXTS, SITES, interventions=made)
    seen = passed(model, monkeypatch)
    together = last_token(model, TEXTS, SITES, interventions=made, share=True)
    for site in SITES:
        assert torch.allclose(together[site], alone[site], atol=2e-5, rtol=1e-4), site
    longest = max(len(model.plain(text).ids) for text in TEXTS)
    # The beginning, and then only what comes after it.
    assert len(seen) == 2 and seen[0] >= 16 and sum(seen) == longest


def test_nothing_before_a_read_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")

    def first(_: object) -> tuple[int, int]:
        return (0, 20)

    alone = read(model, TEXTS, SITES, locate=first)
    seen = passed(model, monkeypatch)
    together = read(model, TEXTS, SITES, locate=first, share=True)
    assert all(torch.equal(together[site], alone[site]) for site in SITES)
    assert len(seen) == 1


@pytest.mark.parametrize("texts", [["gold", "a coin"], TEXTS[:1]], ids=["short", "single"])
def test_what_spares_little_is_not_shared(
    texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    alone = next_token_log_probs(model, texts)
    seen = passed(model, monkeypatch)
    assert torch.equal(next_token_log_probs(model, texts, share=True), alone)
    assert len(seen) == 1


def test_families_without_a_prefix_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    alone = next_token_log_probs(model, TEXTS)

    def refused() -> None:
        raise BadInput("no prefix")

    monkeypatch.setattr(model.checks, "prefix", refused)
    assert torch.equal(next_token_log_probs(model, TEXTS, share=True), alone)
