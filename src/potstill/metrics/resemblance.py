"""How alike images are: pixel by pixel, in structure, by a network's features, and as two sets of images.

Images are ``(N, C, H, W)``, scaled to 0..1. Distances by features are named after what they are measured
with: only with Inception's features would they be the published FID, KID or, with trained weights, LPIPS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d

from potstill.losses import perceptual

__all__ = [
    "WINDOW",
    "bootstrap",
    "discrepancies",
    "kernel_distance",
    "kernel_jackknife",
    "perceptual_distance",
    "psnr",
    "ssim",
]

LEAST_ERROR = 1e-10
"""Equal images have a PSNR of 100 dB, not of infinity."""
WINDOW, SIGMA = 11, 1.5
"""Side of the window in which structures are compared, and how wide its bell is."""
DRAWS = 1000
BLOCK = 1024
"""Rows of a kernel's matrix that are held at once."""

Floats = NDArray[np.float64]


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``(N,)``: ``-10 log10`` of the mean squared error, at most 100.

    >>> psnr(torch.full((1, 1, 4, 4), 0.6), torch.full((1, 1, 4, 4), 0.5))
    tensor([20.0000])
    """
    error = (image - reference).square().flatten(1).mean(dim=1)
    return -10.0 * error.clamp(min=LEAST_ERROR).log10()


def ssim(image: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity, at most 1, ``(N,)``: a Gaussian window of 11 pixels, each channel for itself.

    Args:
        image: ``(N, C, H, W)``, sides from 11.
        reference: The same shape.

    Raises:
        ValueError: If a side is shorter.

    Reference:
        Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
        Similarity", 2004, https://doi.org/10.1109/TIP.2003.819861

    >>> ssim(torch.eye(12)[None, None], torch.eye(12)[None, None])
    tensor([1.])
    """
    if min(image.shape[2:]) < WINDOW:
        raise ValueError(f"expected sides from {WINDOW} pixels, got {tuple(image.shape[2:])}")
    places = torch.arange(WINDOW, dtype=image.dtype, device=image.device) - WINDOW // 2
    bell = torch.exp(-0.5 * (places / SIGMA).square())
    bell = bell / bell.sum()

    def blurred(values: Tensor) -> Tensor:
        flat = values.flatten(0, 1).unsqueeze(1)
        return conv2d(conv2d(flat, bell[None, None, :, None]), bell[None, None, None, :])

    one, other = blurred(image), blurred(reference)
    spread_one = blurred(image.square()) - one.square()
    spread_other = blurred(reference.square()) - other.square()
    together = blurred(image * reference) - one * other
    steady, steadier = 0.01**2, 0.03**2
    alike = (2 * one * other + steady) * (2 * together + steadier)
    alike = alike / ((one.square() + other.square() + steady) * (spread_one + spread_other + steadier))
    return alike.reshape(len(image), -1).mean(dim=1)


def perceptual_distance(features: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """Distance of two images in a network's eyes, ``(N,)``: the mean of the loss ``perceptual`` over layers.

    Args:
        features: Maps of each layer, ``(N, C, H, W)``.
        reference: The same of the other images.

    >>> maps = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
    >>> perceptual_distance([maps, maps], [maps.flip(1), maps])
    tensor([1.])
    """
    layers = zip(features, reference, strict=True)
    return torch.stack([perceptual(one, other) for one, other in layers]).mean(dim=0)


def kernel_distance(features: Floats, reference: Floats, counts: Floats | None = None) -> float:
    """Kernel distance of two sets of feature vectors (KID): unbiased, so it may be below 0.

    Formula:
        mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over different images, k(a, b) = (a.b / d + 1)^3

    All pairs count but those of an image with itself; where the two sets are of the same images, also not
    those of an image with its counterpart.

    Args:
        features: ``(N, d)``.
        reference: ``(N, d)``, row by row of the same images.
        counts: How often each image counts, ``(N,)``; once by default.

    Reference:
        Binkowski, Sutherland, Arbel, Gretton, "Demystifying MMD GANs", 2018,
        https://arxiv.org/abs/1801.01401

    >>> same = np.eye(3)
    >>> kernel_distance(same, same)
    0.0
    """
    weights = np.ones(len(features)) if counts is None else counts
    return float(discrepancies(features, reference, weights[None])[0])


def discrepancies(features: Floats, reference: Floats, counts: Floats) -> Floats:
    """The kernel distance for each row of counts ``(D, N)``, ``(D,)``."""
    one, other = (np.asarray(each, dtype=np.float64) for each in (features, reference))
    between = _kernel(one, other)
    pairs = _kernel(one, one) + _kernel(other, other) - between - between.T
    np.fill_diagonal(pairs, 0.0)
    total = counts.sum(axis=1)
    found: Floats = ((counts @ pairs) * counts).sum(axis=1) / (total**2 - (counts**2).sum(axis=1))
    return found


def _kernel(left: Floats, right: Floats) -> Floats:
    values: Floats = (left @ right.T / left.shape[1] + 1.0) ** 3
    return values


def kernel_jackknife(features: Floats, reference: Floats) -> Floats:
    """What each pair of images adds to the kernel distance: pseudo-values ``(N,)``, whose mean it is.

    Formula: ``N * KID - (N - 1) * KID without the pair``; their variance over N is that of KID. Memory grows
    with N, not with its square.

    Args:
        features: ``(N, d)``, N from 2; of two pairs both add the same.
        reference: ``(N, d)``.

    Reference:
        Tukey, "Bias and confidence in not quite large samples", 1958

    >>> one, other = np.random.default_rng(0).normal(size=(2, 50, 4))
    >>> bool(np.isclose(kernel_jackknife(one, other).mean(), kernel_distance(one, other)))
    True
    """
    one, other = (np.asarray(each, dtype=np.float64) for each in (features, reference))
    images, rows = len(one), np.empty(len(one))
    for start in range(0, images, BLOCK):
        cut, here = slice(start, start + BLOCK), np.arange(start, min(start + BLOCK, images))
        pairs = _kernel(one[cut], one) + _kernel(other[cut], other)
        pairs -= _kernel(one[cut], other) + _kernel(other[cut], one)
        pairs[here - start, here] = 0.0
        rows[cut] = pairs.sum(axis=1)
    total = rows.sum()
    without = (total - 2.0 * rows) / (images - 2) if images > 2 else total / images
    values: Floats = total / (images - 1) - without * np.ones(images)
    return values


def bootstrap(measure: Callable[[Floats], Floats], images: int, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a figure over which images were drawn.

    Args:
        measure: Gives the figure for each row of counts ``(D, N)``, ``(D,)``.
        images: Number of images, N.
        seed: Of the 1000 draws.

    Example:
        >>> values = np.arange(100.0)
        >>> low, high = bootstrap(lambda counts: counts @ values / counts.sum(axis=1), 100)
        >>> 40 < low < 49.5 < high < 60
        True
    """
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(images, np.full(images, 1 / images), size=DRAWS).astype(np.float64)
    low, high = np.quantile(measure(counts), [0.025, 0.975])
    return float(low), float(high)
