"""Sparse autoencoders against numpy, and on activations made of planted features."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from attacks.core.analysis.autoencoder import Kind, SparseAutoencoder, fit_autoencoder, sparse
from attacks.core.errors import BadInput
from conftest import normal

KINDS: tuple[Kind, ...] = ("abs-topk", "topk")
FEATURES, WIDTH, ACTIVE = 24, 16, 2
TENSORS = ("encoder", "bias", "decoder", "middle", "scale")


def some_autoencoder(kind: Kind, k: int = 3) -> SparseAutoencoder:
    decoder = torch.nn.functional.normalize(normal(12, 8, seed=1), dim=1)
    parts = (normal(12, 8, seed=2), normal(12, seed=3), decoder, normal(8, seed=4))
    return SparseAutoencoder(*parts, torch.tensor(1.7), kind, k, 2)


def planted_features(kind: Kind) -> tuple[torch.Tensor, torch.Tensor]:
    """True unit features (F, D) and activations (N, D), each made of `ACTIVE` of them."""
    rng = torch.Generator().manual_seed(7)
    true = torch.nn.functional.normalize(torch.randn((FEATURES, WIDTH), generator=rng), dim=1)
    codes = torch.zeros(4000, FEATURES)
    at = torch.rand(codes.shape, generator=rng).topk(ACTIVE, dim=1).indices
    values = 1 + torch.rand(at.shape, generator=rng)
    if kind == "abs-topk":
        values *= 1 - 2 * torch.randint(2, at.shape, generator=rng)
    return true, codes.scatter(1, at, values) @ true


def fitted_on(
    states: torch.Tensor, kind: Kind, *, k: int = ACTIVE, steps: int = 1500
) -> SparseAutoencoder:
    size: dict[str, Any] = {"layer": 0, "latents": FEATURES, "k": k, "steps": steps}
    return fit_autoencoder(states, kind=kind, **size, rng=torch.Generator().manual_seed(0))


def recovered(found: torch.Tensor, true: torch.Tensor, *, signed: bool) -> float:
    cosines = torch.nn.functional.normalize(found, dim=1) @ true.T
    return float((cosines if signed else cosines.abs()).amax(0).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_encode_and_decode_against_numpy(kind: Kind) -> None:
    autoencoder, states = some_autoencoder(kind), normal(40, 8, seed=5)
    encoder, bias, decoder, middle = (
        getattr(autoencoder, name).double().numpy()
        for name in ("encoder", "bias", "decoder", "middle")
    )
    away = (states.double().numpy() - middle) / 1.7
    expected = np.zeros((40, 12))
    for row, x in enumerate(away):
        pre = np.array([sum(w * v for w, v in zip(line, x, strict=True)) for line in encoder])
        pre += bias
        size = np.abs(pre) if kind == "abs-topk" else pre
        for at in np.argsort(-size)[:3]:
            expected[row, at] = pre[at] if kind == "abs-topk" else max(pre[at], 0.0)
    codes = autoencoder.encode(states)
    np.testing.assert_allclose(codes.numpy(), expected, rtol=1e-4, atol=1e-5)
    rebuilt = middle + 1.7 * expected @ decoder
    np.testing.assert_allclose(autoencoder.decode(codes).numpy(), rebuilt, rtol=1e-4, atol=1e-5)
    rest = np.square(states.numpy() - rebuilt).sum() / np.square(states.numpy() - middle).sum()
    assert autoencoder.unexplained(states) == pytest.approx(rest, rel=1e-4)


@pytest.mark.parametrize("k", [1, 4, 12])
def test_k_latents_are_kept_and_they_are_the_largest(k: int) -> None:
    pre = normal(50, 12)
    kept = sparse(pre, k, "abs-topk")
    assert ((kept != 0).sum(1) == k).all()
    assert torch.equal(kept[kept != 0], pre[kept != 0]), "with its sign"
    least = torch.where(kept != 0, pre.abs(), torch.inf).amin(1)
    assert (torch.where(kept == 0, pre.abs(), 0).amax(1) <= least).all()
    positive = pre.abs()
    assert torch.equal(sparse(positive, k, "topk"), sparse(positive, k, "abs-topk"))
    assert torch.equal((sparse(pre, k, "topk") != 0).sum(1), (pre > 0).sum(1).clamp_max(k))


def test_abs_topk_keeps_a_sign_that_topk_cannot() -> None:
    pre = torch.tensor([[-3.0, 1.0, 2.0, -0.5], [-1.0, -2.0, -3.0, -4.0]])
    kept = torch.tensor([[-3.0, 0.0, 2.0, 0.0], [0.0, 0.0, -3.0, -4.0]])
    assert torch.equal(sparse(pre, 2, "abs-topk"), kept)
    assert torch.equal(sparse(-pre, 2, "abs-topk"), -kept), "odd: the other side is its mirror"
    positive = torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(sparse(pre, 2, "topk"), positive)


@pytest.mark.parametrize("kind", KINDS)
def test_planted_features_are_recovered_above_chance(kind: Kind) -> None:
    true, states = planted_features(kind)
    fitted = fitted_on(states, kind)
    signed = kind == "topk"
    chance = max(
        recovered(normal(FEATURES, WIDTH, seed=seed), true, signed=signed) for seed in range(20, 40)
    )
    assert chance < 0.75, "random directions are not taken for the features"
    assert recovered(fitted.decoder, true, signed=signed) > 0.9
    assert fitted.unexplained(states) < 0.15
    torch.testing.assert_close(fitted.decoder.norm(dim=1), torch.ones(FEATURES))
    assert int((fitted.encode(states) != 0).sum(1).max()) <= ACTIVE


@pytest.mark.parametrize("kind", KINDS)
def test_more_latents_leave_less_unexplained(kind: Kind) -> None:
    """Beyond the number of features too: the others take up noise."""
    _, states = planted_features(kind)
    noisy = states + 0.2 * normal(*states.shape)
    rest = [fitted_on(noisy, kind, k=k, steps=400).unexplained(noisy) for k in (1, 2, 4, 8)]
    assert all(more > less for more, less in pairwise(rest)) and rest[-1] < rest[0] / 2


def test_topk_needs_two_latents_for_what_abs_topk_says_with_one() -> None:
    """Features of both signs: a code of as many latents as features rebuilds them or does not."""
    _, states = planted_features("abs-topk")
    rest = {kind: fitted_on(states, kind).unexplained(states) for kind in KINDS}
    assert rest["abs-topk"] < rest["topk"] / 2


def test_a_seed_gives_one_autoencoder_and_another_seed_another() -> None:
    states = normal(300, 8)
    same = {"layer": 0, "latents": 16, "k": 2, "kind": "topk", "steps": 30}
    one, again, other = (
        fit_autoencoder(states, **same, rng=torch.Generator().manual_seed(seed)).decoder  # type: ignore[arg-type]
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_loaded(kind: Kind, tmp_path: Path) -> None:
    autoencoder, path = some_autoencoder(kind), tmp_path / "one.safetensors"
    autoencoder.save(path)
    found, states = SparseAutoencoder.load(path), normal(5, 8)
    assert (found.kind, found.k, found.layer) == (kind, 3, 2)
    for name in TENSORS:
        assert torch.equal(getattr(found, name), getattr(autoencoder, name)), name
    assert torch.equal(found.encode(states), autoencoder.encode(states))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        SparseAutoencoder.load(tmp_path / "none")
    (tmp_path / "text").write_text("text")
    save_file({"encoder": torch.zeros(2, 2)}, tmp_path / "other")
    replace(some_autoencoder("topk"), k=13).save(tmp_path / "too many")
    for name in ("text", "other", "too many"):
        with pytest.raises(BadInput, match=f"{name}' is not a file that"):
            SparseAutoencoder.load(tmp_path / name)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"k": 0}, "k=0; valid: 1 to latents=16"),
        ({"k": 17}, "k=17; valid: 1 to latents=16"),
        ({"kind": "relu"}, "kind 'relu'; valid: abs-topk, topk"),
        ({"steps": -1}, "steps=-1; valid: 0 or more"),
    ],
)
def test_what_cannot_be_fitted_is_refused(wrong: dict[str, Any], reason: str) -> None:
    right = {"layer": 0, "latents": 16, "k": 2, "kind": "topk", "steps": 1}
    with pytest.raises(BadInput, match=reason):
        fit_autoencoder(normal(9, 4), **{**right, **wrong}, rng=torch.Generator())
    with pytest.raises(BadInput, match="all the same"):
        fit_autoencoder(torch.ones(9, 4), **right, rng=torch.Generator())  # type: ignore[arg-type]
