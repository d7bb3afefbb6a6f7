"""Screened directions: first-order effects, and the same choice as when all are scored."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Generator, Tensor

from attacks.core.interventions import AddDirection, Context, Intervention
from attacks.core.model import Model
from attacks.core.reading.states import next_token_log_probs
from attacks.core.refusals import screen_directions
from attacks.core.refusals.directions import RefusalDirection, find_refusal_direction
from attacks.core.refusals.openers import refusal_score
from attacks.core.refusals.screen_directions import first_order, screened
from attacks.core.sites import RESIDUAL_WRITES, Site
from benchmarks.inputs.behaviors import load_behaviors
from conftest import pocket

OPENERS = torch.tensor([5, 9, 40])


class PartlyAblated(Intervention):
    """A share of what `AblateDirection` takes out of what is written, and of no block's input."""

    def __init__(self, direction: Tensor, n_layers: int, share: float) -> None:
        self.unit, self.n_layers, self.share = direction / direction.norm(), n_layers, share

    @property
    def sites(self) -> tuple[Site, ...]:
        names = RESIDUAL_WRITES[1:]
        written = [Site(at, name) for at in range(self.n_layers) for name in names]
        return (Site(0, "resid_pre"), *written)

    def __call__(self, activation: Tensor, ctx: Context) -> Tensor:
        return activation - self.share * (activation @ self.unit).unsqueeze(-1) * self.unit


def test_first_order_effects_are_those_of_small_steps() -> None:
    model = pocket("pocket-qwen2")
    texts = ["How do I paint the harp?", "Mend the oar", "What is a lyre for, and who has one?"]
    prompts = [model.plain(text) for text in texts]
    directions = torch.randn(2, model.n_layers, model.width, generator=Generator().manual_seed(0))
    directions *= 0.1  # So that a step by a hundredth of one is small beside the embeddings.
    found = first_order(model, directions, prompts, prompts, OPENERS)

    def score(change: Intervention) -> float:
        rows = next_token_log_probs(model, prompts, interventions=[change])
        return float(refusal_score(rows, OPENERS).mean())

    for at, layer in ((0, 0), (1, 2), (1, model.n_layers - 1)):
        direction = directions[at, layer]
        ablated, added = (
            (score(make(1e-2)) - score(make(-1e-2))) / 2e-2
            for make in (
                lambda step, r=direction: PartlyAblated(r, model.n_layers, step),
                lambda step, r=direction, at=layer: AddDirection(r, at, step),
            )
        )
        assert float(found.ablated[at, layer]) == pytest.approx(ablated, rel=0.02, abs=2e-3)
        assert float(found.added[at, layer]) == pytest.approx(added, rel=0.02, abs=2e-3)


def deeper(name: str, times: int) -> Model:
    """A pocket model with blocks between its own that write little, at random."""
    base = pocket(name)
    config = deepcopy(base.hf.config)
    config.num_hidden_layers = times * base.n_layers
    if getattr(config, "layer_types", None):
        config.layer_types = [kind for kind in config.layer_types for _ in range(times)]
    hf = type(base.hf)(config).float()
    rng, old, new = Generator().manual_seed(0), base.hf.state_dict(), hf.state_dict()
    for path, values in new.items():
        parts = path.split(".")
        if "layers" not in parts:
            values.copy_(old[path])
            continue
        layer = int(parts[2])
        source = old[".".join([*parts[:2], str(layer // times), *parts[3:]])]
        values.copy_(source)
        if layer % times and ("o_proj" in path or "down_proj" in path):
            values.copy_(0.05 * source.std() * torch.randn(values.shape, generator=rng))
    hf.load_state_dict(new)
    return Model(hf, base.chat.tokenizer, name=f"deeper-{name}")


def found_on(model: Model, count: int) -> RefusalDirection:
    rows = load_behaviors("pocket-train")
    some = ([row.text for row in rows if row.harmful == flag][:count] for flag in (True, False))
    return find_refusal_direction(model, *some, rng=Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pocket-llama", "pocket-qwen2"])
def test_few_exact_scores_choose_as_all_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 0.1 of the exhaustive choice's bypass score, and by the same filters."""
    model = deeper(name, 4)
    monkeypatch.setattr(screen_directions, "FEW", 3)
    before = model.meter.flops
    found = found_on(model, 16)
    spent = model.meter.flops - before
    monkeypatch.setattr(screen_directions, "MOST_EXACT", 10**9)
    exhaustive = found_on(model, 16)
    assert found.refused > 0 > found.answered, "it still refuses as the pocket model does"
    assert len(found.scores) == screen_directions.FINE < len(exhaustive.scores) / 10
    assert spent < (model.meter.flops - before - spent) / 2.5
    assert found.score in exhaustive.scores, "what is scored exactly is scored as before"
    assert found.given_up == exhaustive.given_up
    assert found.score.bypass <= exhaustive.score.bypass + 0.1


def test_small_models_and_single_tokens_are_scored_as_before() -> None:
    def fail(*_: object) -> list[object]:
        raise AssertionError("nothing is to be screened")

    model = pocket("pocket-llama")
    some = [model.plain("Mend the oar")]
    rng = Generator().manual_seed(0)
    for shape in ((5, model.n_layers, model.width), (1, model.n_layers, model.width)):
        rows = torch.randn(shape, generator=rng)
        kept = screened(
            model, rows, some, some, OPENERS, score=fail, choose=lambda s: s[0], depth=0.8
        )
        assert kept is rows
