"""Likeness of images against slow oracles, golden numbers and torchmetrics."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from potstill.metrics.resemblance import (
    bootstrap,
    discrepancies,
    kernel_distance,
    kernel_jackknife,
    perceptual_distance,
    psnr,
    ssim,
)


def pair(side: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    one = torch.rand(3, 3, side, side, generator=generator, dtype=torch.float64)
    return one, (one + 0.2 * torch.randn(one.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)


def test_psnr_and_ssim_equal_torchmetrics() -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    one, other = pair()
    for image, reference, noise, alike in zip(one, other, psnr(one, other), ssim(one, other), strict=True):
        wanted = peak_signal_noise_ratio(image[None], reference[None], data_range=1.0)
        assert float(noise) == pytest.approx(float(wanted), rel=1e-6)
        _, whole = structural_similarity_index_measure(
            image[None], reference[None], data_range=1.0, return_full_image=True
        )
        inner = whole[:, :, 5:-5, 5:-5]  # beyond it torchmetrics looks at mirrored pixels
        assert float(alike) == pytest.approx(float(inner.mean()), rel=1e-6)


def test_equal_images_are_as_alike_as_can_be() -> None:
    one, _ = pair()
    assert psnr(one, one).tolist() == [100.0] * 3
    torch.testing.assert_close(ssim(one, one), torch.ones(3, dtype=torch.float64))
    assert perceptual_distance([one], [one]).tolist() == [0.0] * 3
    assert kernel_distance(one.flatten(1).numpy(), one.flatten(1).numpy()) == 0.0
    with pytest.raises(ValueError, match="sides from 11"):
        ssim(one[..., :8], one[..., :8])


def test_perceptual_distance_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    layers = [torch.randn(2, width, 3, 2, generator=generator) for width in (4, 5)]
    others = [torch.randn(2, width, 3, 2, generator=generator) for width in (4, 5)]
    found = perceptual_distance(layers, others)
    for row in range(2):
        total = 0.0
        for one, other in zip(layers, others, strict=True):
            for y in range(3):
                for x in range(2):
                    a, b = one[row, :, y, x].tolist(), other[row, :, y, x].tolist()
                    long, wide = (math.sqrt(sum(value**2 for value in each)) for each in (a, b))
                    total += sum((p / long - q / wide) ** 2 for p, q in zip(a, b, strict=True)) / 6
        assert float(found[row]) == pytest.approx(total / 2, rel=1e-5)


def test_kernel_distance_equals_a_loop_and_counts_repeat_images() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(5, 4)), rng.normal(0.5, size=(5, 4))

    def kernel(left: np.ndarray, right: np.ndarray) -> float:
        return float((left @ right / 4 + 1) ** 3)

    def slow(rows: list[int]) -> float:
        values = []
        for a, b in itertools.permutations(rows, 2):
            if a != b:
                within = kernel(one[a], one[b]) + kernel(other[a], other[b])
                values.append(within - kernel(one[a], other[b]) - kernel(other[a], one[b]))
        return sum(values) / len(values)

    assert kernel_distance(one, other) == pytest.approx(slow([0, 1, 2, 3, 4]), rel=1e-9)
    counts = np.array([[2.0, 0, 1, 1, 1]])
    assert discrepancies(one, other, counts)[0] == pytest.approx(slow([0, 0, 2, 3, 4]), rel=1e-9)


def test_kernel_distance_is_near_torchmetrics_and_unbiased() -> None:
    from torchmetrics.image.kid import poly_mmd

    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(400, 8)), rng.normal(0.3, size=(400, 8))
    wanted = float(poly_mmd(torch.from_numpy(one), torch.from_numpy(other)))
    assert kernel_distance(one, other) == pytest.approx(wanted, rel=0.05)
    same = [kernel_distance(rng.normal(size=(50, 8)), rng.normal(size=(50, 8))) for _ in range(60)]
    assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(60)
    assert min(same) < 0 < max(same)


def test_bootstrap_covers_the_mean() -> None:
    values = np.random.default_rng(1).normal(size=200)
    low, high = bootstrap(lambda counts: counts @ values / counts.sum(axis=1), 200)
    error = values.std() / math.sqrt(200)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.03)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.03)


def test_the_jackknife_leaves_each_image_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.metrics.resemblance.BLOCK", 5)  # the matrix in three pieces
    one, other = np.random.default_rng(3).normal(size=(2, 13, 4))
    whole = kernel_distance(one, other)
    without = [kernel_distance(np.delete(one, place, 0), np.delete(other, place, 0)) for place in range(13)]
    np.testing.assert_allclose(kernel_jackknife(one, other), 13 * whole - 12 * np.array(without))
    np.testing.assert_allclose(kernel_jackknife(one[:2], other[:2]), kernel_distance(one[:2], other[:2]))


def test_the_jackknifes_spread_is_that_of_the_distance() -> None:
    rng = np.random.default_rng(0)
    sets = [(rng.normal(size=(200, 3)), rng.normal(0.3, 1.2, size=(200, 3))) for _ in range(200)]
    values = [kernel_jackknife(*each) for each in sets]
    spread = np.std([each.mean() for each in values])
    told = np.mean([each.std(ddof=1) / 200**0.5 for each in values])
    assert told == pytest.approx(spread, rel=0.2)
