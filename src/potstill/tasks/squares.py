"""Squares of images, as tasks look at them."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.augment.draws import Draws

__all__ = ["as_shares", "squares"]


def squares(images: Tensor, side: int, draws: Draws) -> Tensor:
    """A square of each image, its place a pure function of the draws: ``(N, C, H, W)`` to sides of ``side``.

    >>> draws = Draws(torch.arange(2), seed=0, view=0, first=0)
    >>> squares(torch.rand(2, 3, 8, 9), 4, draws).shape
    torch.Size([2, 3, 4, 4])
    """
    if tuple(images.shape[2:]) == (side, side):
        return images
    tops, lefts = (
        draws.whole(place, length - side + 1).tolist() for place, length in enumerate(images.shape[2:])
    )
    places = zip(images, tops, lefts, strict=True)
    return torch.stack([one[:, top : top + side, left : left + side] for one, top, left in places])


def as_shares(images: Tensor) -> Tensor:
    """Images of bytes as floats in 0..1; floats as they are."""
    return images if images.is_floating_point() else images.float() / 255.0
