"""The Fréchet distance of two sets of images, as if a network's features of each were normally distributed.

It is called after what it is measured with: only with Inception's features would it be the published FID.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["enough", "frechet_distance", "frechet_figures"]

DRAWS = 100
LEAST_PER_FEATURE = 10
"""Images for each feature below which the distance tells more of their number than of them."""

Floats = NDArray[np.float64]


def enough(images: int, width: int) -> bool:
    """Whether ``images`` feature vectors of ``width`` numbers are enough to speak of their covariance."""
    return images >= LEAST_PER_FEATURE * width


def frechet_distance(features: NDArray[np.floating[Any]], reference: NDArray[np.floating[Any]]) -> float:
    """Squared Fréchet distance of the normal distributions with the two sets' means and covariances.

    It is biased upwards: two samples of one distribution are apart, the more the fewer they are.

    Formula:
        ||m_x - m_y||^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))

    Args:
        features: ``(N, d)``.
        reference: ``(M, d)``.

    Returns:
        From 0.

    Reference:
        Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, "GANs Trained by a Two Time-Scale Update Rule
        Converge to a Local Nash Equilibrium", 2017, https://arxiv.org/abs/1706.08500

    >>> points = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(frechet_distance(points + 2.0, points), 6)
    12.0
    """
    (mean, spread), (other_mean, other_spread) = map(_moments, (features, reference))
    root = _root(spread)
    # (C_x C_y)^(1/2) has the trace of (C_x^(1/2) C_y C_x^(1/2))^(1/2), which is symmetric.
    together = np.linalg.eigvalsh(root @ other_spread @ root).clip(min=0.0)
    apart = np.square(mean - other_mean).sum() + np.trace(spread) + np.trace(other_spread)
    return max(float(apart - 2.0 * np.sqrt(together).sum()), 0.0)


def frechet_figures(
    features: NDArray[np.floating[Any]], reference: NDArray[np.floating[Any]]
) -> dict[str, Any]:
    """What ``result.json`` tells: the mean distance over seeds and its interval over which images were drawn.

    The interval is that of a bootstrap in its basic form: a draw with repeats has fewer different images, so
    a greater distance, and what it has more than the whole is taken off on the other side.

    Args:
        features: ``(seeds, N, d)``.
        reference: ``(seeds, N, d)``, row by row in pairs.

    Returns:
        ``frechet`` and ``frechet_interval``; nothing of too few images for d features.
    """
    images, width = features.shape[-2:]
    if not enough(images, width):
        return {}

    def measured(rows: NDArray[np.integer[Any]]) -> float:
        pairs = zip(features, reference, strict=True)
        return float(np.mean([frechet_distance(one[rows], other[rows]) for one, other in pairs]))

    rng, whole = np.random.default_rng(0), measured(np.arange(images))
    drawn = [measured(rng.integers(0, images, size=(images,))) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    between = [max(2 * whole - float(end), 0.0) for end in (high, low)]
    return {"frechet": whole, "frechet_interval": between}


def _moments(features: NDArray[np.floating[Any]]) -> tuple[Floats, Floats]:
    rows = np.asarray(features, dtype=np.float64)
    return rows.mean(axis=0), np.atleast_2d(np.cov(rows, rowvar=False))


def _root(matrix: Floats) -> Floats:
    """The square root of a symmetric matrix that has no negative eigenvalue but by rounding."""
    values, vectors = np.linalg.eigh(matrix)
    found: Floats = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    return found
