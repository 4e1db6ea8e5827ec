"""Cutting a validation or test part off, seeded and with every class in its share."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from potstill.data.dataset import LabelledSet
from potstill.errors import UserError

__all__ = ["cut", "stratified"]

Part = TypeVar("Part", bound=LabelledSet)


def stratified(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Positions of ``count`` samples in which every class has its share, in ascending order.

    Shares are rounded down and the largest remainders get the rest.

    >>> stratified(np.array([0, 0, 0, 1, 1, 1]), 2, seed=0).shape
    (2,)
    """
    rng = np.random.default_rng([seed, count, len(labels)])
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * count / len(labels)
    taken = np.floor(exact).astype(int)
    order = np.argsort(-(exact - taken), kind="stable")
    taken[order[: count - taken.sum()]] += 1
    chosen = [
        rng.permutation(np.flatnonzero(labels == one))[:n] for one, n in zip(classes, taken, strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def cut(whole: Part, share: float, seed: int, where: str) -> tuple[Part, Part]:
    """What remains of ``whole``, and a stratified part of it.

    Args:
        whole: What to cut.
        share: Below 1 a share of the samples, from 1 on their number.
        seed: Seed of the cut.
        where: Dotted key for the message.

    Raises:
        UserError: If that is neither a share nor a whole number, or fewer than two samples would be left on
            either side.
    """
    if not share < 1 and not float(share).is_integer():
        raise UserError(where, f"expected a share below 1 or a whole number of samples, got {share:g}")
    count = round(share * len(whole)) if share < 1 else int(share)
    if not 2 <= count <= len(whole) - 2:
        raise UserError(where, f"cannot cut {count} of {len(whole)} samples: both parts need at least two")
    part = stratified(whole.labels.numpy(), count, seed)
    rest = np.setdiff1d(np.arange(len(whole)), part)
    return whole.subset(rest.tolist()), whole.subset(part.tolist())
