"""The Fréchet distance against scipy's matrix root, hand-made cases and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm

from potstill.metrics.frechet import enough, frechet_distance, frechet_figures


def sets(images: int = 60, width: int = 5) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(width, width))
    return rng.normal(size=(images, width)) @ mixing, rng.normal(0.5, 1.3, size=(images, width))


def test_it_is_the_formula_with_scipys_root() -> None:
    one, other = sets()
    left, right = (np.cov(each, rowvar=False) for each in (one, other))
    apart = np.square(one.mean(axis=0) - other.mean(axis=0)).sum()
    wanted = apart + np.trace(left + right - 2 * np.real(sqrtm(left @ right)))
    assert frechet_distance(one, other) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-9)


def test_one_feature_by_hand() -> None:
    """(m - n)^2 + (s - t)^2 of two normal distributions on a line."""
    one, other = np.array([[0.0], [2.0]]), np.array([[5.0], [9.0]])
    assert frechet_distance(one, other) == pytest.approx(6.0**2 + (np.sqrt(2) - np.sqrt(8)) ** 2)


def test_equal_sets_are_not_apart() -> None:
    one, _ = sets()
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(one, one[::-1]) == pytest.approx(0.0, abs=1e-9)


def test_it_equals_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    one, other = sets(width=3)

    class Features(torch.nn.Module):
        num_features = 3

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1).double()

    judge = FrechetInceptionDistance(feature=Features(), normalize=True, input_img_size=(3, 1, 1))
    judge.set_dtype(torch.float64)
    judge.update(torch.from_numpy(one)[:, :, None, None], real=True)
    judge.update(torch.from_numpy(other)[:, :, None, None], real=False)
    assert frechet_distance(one, other) == pytest.approx(float(judge.compute()), rel=1e-4)


def test_the_interval_holds_the_distance_and_shrinks_with_images() -> None:
    few, many = (frechet_figures(*(each[None] for each in sets(images))) for images in (60, 2000))
    low, high = few["frechet_interval"]
    assert 0.0 <= low < high
    closer = many["frechet_interval"]
    assert closer[1] - closer[0] < high - low
    assert closer[0] < many["frechet"] < closer[1]
    assert many["frechet"] == frechet_distance(*sets(2000))


def test_several_seeds_count_alike() -> None:
    one, other = sets(600)
    both = frechet_figures(np.stack([one, other]), np.stack([other, other]))
    assert both["frechet"] == pytest.approx(frechet_distance(one, other) / 2)


def test_too_few_images_say_nothing_of_a_covariance() -> None:
    assert not enough(200, 1280)
    assert enough(5000, 84)
    assert frechet_figures(np.zeros((1, 49, 5)), np.zeros((1, 49, 5))) == {}
