"""Which directions are faithful, on toys where the truth is planted and on a pocket model."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch
from torch import Tensor

from attacks.core.analysis.faithfulness import Faithfulness, measure, mlp_faithfulness, moved, split
from attacks.core.errors import BadInput
from attacks.core.reading.states import next_token_log_probs
from attacks.core.refusals.openers import refusal_score, refusal_tokens
from benchmarks.inputs.behaviors import load_behaviors
from conftest import pocket

#: Wide, so that a random direction has little of any one dimension.
PAIRS, WIDTH = 24, 400
#: The toy's read-out sees the first three dimensions, and only the first two move the score.
READERS = torch.eye(WIDTH)[:3]
AXES = torch.eye(WIDTH, dtype=torch.float64)


def toy(direction: Tensor, *, varies: Tensor) -> Faithfulness:
    """Sources lie 2 further along `varies` than bases; dimensions 0 and 1 make the score."""
    rng = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn((2, PAIRS, WIDTH), generator=rng, dtype=torch.float64)
    noise[..., 1] = 0.0  # Dimension 1 is connected and, on real data, dormant.
    base, source = noise[0] - varies, noise[1] + varies

    def score(rows: Tensor) -> Tensor:
        return rows @ (READERS.double().T @ torch.tensor([1.0, 3.0, 0.0], dtype=torch.float64))

    return measure(
        lambda index, rows: score(rows),
        base,
        source,
        score(source),
        direction,
        READERS,
        rng=torch.Generator().manual_seed(1),
    )


def test_a_planted_illusion_is_flagged() -> None:
    """The sum of a disconnected direction that varies and a connected one that does not."""
    found = toy(AXES[4] + AXES[1], varies=AXES[0] + AXES[4])
    assert found.verdict == "dormant path"
    assert found.effects["direction"].share > 1.0 and found.effects["direction"].flips == 1.0
    assert abs(found.effects["read"].share) < 1e-9 and abs(found.effects["unread"].share) < 1e-9
    assert found.effects["read"].flips == 0.0
    # As a part of the direction's own patch it is what moves the score.
    assert found.effects["read as part"].share == pytest.approx(found.effects["direction"].share)
    assert found.alignment > 0.6 and found.spread < 1e-6 and found.reach > 4


def test_a_faithful_direction_passes() -> None:
    found = toy(AXES[0] + 0.5 * AXES[4], varies=AXES[0] + AXES[4])
    assert found.verdict == "faithful"
    assert found.effects["read"].share == pytest.approx(1.0, abs=0.05)
    assert found.effects["whole"].share == pytest.approx(1.0, abs=1e-9)
    assert (found.rank, found.dimension) == (3, WIDTH)
    assert found.spread > 1 and found.separation > 4 and found.reach < 4


def test_what_does_nothing_and_what_cannot_be_tested() -> None:
    assert toy(AXES[2], varies=AXES[0]).verdict == "vacuous"  # All of it is read.
    assert toy(AXES[2] + AXES[5], varies=AXES[0] + AXES[5]).verdict == "no effect"


def test_an_effect_through_readers_that_were_not_named() -> None:
    base, source = torch.randn((2, 8, WIDTH), generator=torch.Generator().manual_seed(2)).double()
    source = source + 9 * AXES[4]
    direction = AXES[0] + AXES[4]
    found = measure(
        lambda index, rows: rows[:, 4],
        base,
        source,
        source[:, 4],
        direction,
        READERS,
        rng=torch.Generator(),
    )
    assert found.verdict == "other readers"


def test_the_split_is_that_of_the_singular_vectors() -> None:
    rng = torch.Generator().manual_seed(3)
    for rows in (4, 30):
        # Of rank 4, however many rows.
        readers = torch.randn((rows, 4), generator=rng) @ torch.randn((4, 9), generator=rng)
        direction = torch.randn(9, generator=rng)
        read, unread, rank = split(direction, readers)
        _, _, vectors = torch.linalg.svd(readers.double())
        expected = vectors[:4].T @ (vectors[:4] @ direction.double())
        assert rank == 4
        torch.testing.assert_close(read, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(read + unread, direction.double())
        assert (readers.double() @ unread).abs().max() < 1e-4


def test_a_patch_moves_one_component_only() -> None:
    base, source = torch.randn((2, 5, 4), generator=torch.Generator().manual_seed(4)).double()
    direction = torch.tensor([0.0, 3.0, 0.0, 0.0]).double()
    expected = base.clone()
    expected[:, 1] = source[:, 1]
    torch.testing.assert_close(moved(base, source, direction), expected)
    assert torch.equal(moved(base, source, torch.zeros(4).double()), base)


def test_patches_in_a_model_equal_plain_hooks() -> None:
    """The whole of one block's MLP, patched by hand; and what is not read does nothing at all."""
    model, layer = pocket("pocket-llama"), 5
    rows = load_behaviors("pocket-test")
    texts = [[row.text for row in rows if row.harmful == flag][:3] for flag in (True, False)]
    train = load_behaviors("pocket-train")
    fit = [[row.text for row in train if row.harmful == flag][:24] for flag in (True, False)]
    ids = refusal_tokens(*(next_token_log_probs(model, part) for part in fit), most=8)
    found = mlp_faithfulness(
        model, (fit[0], fit[1]), (texts[0], texts[1]), ids, rng=torch.Generator()
    )
    assert len(found) == model.n_layers
    assert all(abs(row.effects["unread"].share) < 1e-4 for row in found)
    assert all((row.rank, row.dimension) == (128, 352) for row in found)
    assert row_is_finite(found[layer])
    down = model.hf.model.layers[layer].mlp.down_proj
    scores = []
    for harmful, harmless in zip(*texts, strict=True):
        seen: list[Tensor] = []
        handle = down.register_forward_pre_hook(lambda module, args: seen.append(args[0][:, -1]))  # noqa: B023
        with torch.no_grad():
            model.hf(model.plain(harmful).ids.unsqueeze(0))
        handle.remove()

        def swap(module, args):  # type: ignore[no-untyped-def]
            changed = args[0].clone()
            changed[:, -1] = seen[0]  # noqa: B023
            return (changed,)

        handle = down.register_forward_pre_hook(swap)
        with torch.no_grad():
            logits = model.hf(model.plain(harmless).ids.unsqueeze(0)).logits[:, -1]
        handle.remove()
        scores.append(refusal_score(logits.log_softmax(1), ids)[0])
    high, low = (refusal_score(next_token_log_probs(model, part), ids).mean() for part in texts)
    share = (torch.stack(scores).mean() - low) / (high - low)
    assert found[layer].effects["whole"].share == pytest.approx(float(share), abs=1e-4)
    with pytest.raises(BadInput, match="pairs"):
        mlp_faithfulness(model, (fit[0], fit[1]), (texts[0], []), ids, rng=torch.Generator())


def row_is_finite(row: Faithfulness) -> bool:
    numbers = [value for value in astuple(row) if isinstance(value, float)]
    return all(value == value and abs(value) < 1e9 for value in numbers)


def test_a_family_without_a_known_projection_is_named() -> None:
    structure = pocket("pocket-llama").structure
    without = type(structure)(**{**vars(structure), "mlp_projections": (None,) * 6})
    with pytest.raises(BadInput, match="no output projection of an MLP known in block 2"):
        without.module_path(2, "mlp_post")
